// As cuda_trial.cpp, of the kernels that make one pass over memory: each against plain loops over the same rules.
#include <cmath>

#include "cuda_room.h"
#include "finish.h"
#include "prepare.h"
#include "rearrange.h"

using namespace qk;
using namespace qk::cuda;

namespace {

using Random = std::mt19937;

int64_t padded(int64_t size, int64_t step) { return ceil_to(size, step) * step; }

float real(Random& random) { return std::ldexp(float(int(random() % 2001) - 1000), int(random() % 16) - 16); }

float* reals(Random& random, int64_t count) {
  float* x = lab::room<float>(count);
  for (int64_t i = 0; i < count; ++i) x[i] = random() % 50 ? real(random) : random() % 2 ? INFINITY : -1e30f;
  return x;
}

// Scales of a placement: every row its own, turns of rows, groups along the row.
struct Grain {
  Placement place;
  float* scale;
  int32_t* zero;

  Grain(Random& random, int64_t rows, int64_t inner, unsigned seed) {
    place = {seed % 2 ? rows : 1, 1, 1, inner};
    if (seed % 3 == 1) place.group = 16, place.columns = ceil_to(inner, 16);
    if (seed % 3 == 2) place.group = 5, place.columns = ceil_to(inner, 5);
    scale = lab::room<float>(count());
    zero = lab::room<int32_t>(count());
    for (int64_t i = 0; i < count(); ++i) scale[i] = 0.01f * float(1 + random() % 99), zero[i] = int(random() % 9) - 4;
  }
  int64_t count() const { return place.rows * place.columns; }
  int64_t of(int64_t row, int64_t column) const { return row % place.rows * place.columns + column / place.group; }
};

template <class At>
bool every(int64_t rows, int64_t inner, At is_right) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < inner; ++j)
      if (!is_right(i, j)) return false;
  return true;
}

int32_t field(const uint8_t* bytes, int64_t at, int bits) {
  const int code = bytes[at * bits / 8] >> at * bits % 8 & ((1 << bits) - 1), sign = 1 << (bits - 1);
  return (code ^ sign) - sign;
}

template <int kBits>
bool quantizes(Random& random, int64_t rows, int64_t inner, unsigned seed) {
  if (kBits < 8) inner = seed % 4 ? padded(inner, 8 / kBits) : rows * inner | 1, rows = seed % 4 ? rows : 1;
  float* x = reals(random, rows * inner);
  const Grain g(random, rows, inner, seed);
  const int32_t high = (1 << (kBits - 1)) - 1, low = -high - 1;
  auto* out = lab::room<uint8_t>(ceil_to(rows * inner * kBits, 8), true);
  launch(quantize_kernel<kF32, kBits>, flat_shape(rows * inner), nullptr,
         QuantizeArgs{x, kF32, rows, inner, g.scale, g.zero, nullptr, g.place, low, high, out, kBits}, "quantize");
  if (rows * inner * kBits % 8 && out[rows * inner * kBits / 8] >> 4) return false;  // the half byte behind is 0
  return every(rows, inner, [&](int64_t i, int64_t j) {
    const int32_t zero = g.zero[g.of(i, j)];
    const int32_t code = quantize(x[i * inner + j], g.scale[g.of(i, j)], low - zero, high - zero) + zero;
    return field(out, i * inner + j, kBits) == code;
  });
}

bool dequantizes(Random& random, int64_t rows, int64_t inner, unsigned seed) {
  const auto* codes = lab::random_room<uint8_t>(random, rows * inner);
  const Grain g(random, rows, inner, seed);
  auto* out = lab::room<float>(rows * inner, true);
  launch(dequantize_kernel<8, kF32>, flat_shape(rows * inner), nullptr,
         DequantizeArgs{codes, 8, true, rows, inner, g.scale, g.zero, g.place, out, kF32}, "dequantize");
  return every(rows, inner, [&](int64_t i, int64_t j) {
    const int64_t at = i * inner + j, place = g.of(i, j);
    return out[at] == dequantize(int8_t(codes[at]), g.zero[place], g.scale[place]);
  });
}

bool requantizes(Random& random, int64_t rows, int64_t inner, unsigned seed) {
  const auto* acc = lab::random_room<int32_t>(random, rows * inner);
  const Grain g(random, rows, inner, seed);
  auto* out = lab::room<int8_t>(rows * inner, true);
  RequantizeArgs args = {acc, rows, inner, kHalfEven, g.scale, nullptr, nullptr, g.zero, g.place, -128, 127, out, 8};
  for (int64_t i = 0; i < g.count(); ++i) g.scale[i] *= 1e-6f;
  launch(requantize_kernel<8>, flat_shape(rows * inner), nullptr, args, "requantize");
  return every(rows, inner, [&](int64_t i, int64_t j) {
    const int32_t zero = g.zero[g.of(i, j)];
    const int32_t code = round_half_even(acc[i * inner + j], g.scale[g.of(i, j)], -128 - zero, 127 - zero) + zero;
    return out[i * inner + j] == code;
  });
}

bool packs(Random& random, int64_t rows, int64_t inner, unsigned) {
  auto* codes = lab::random_room<uint8_t>(random, rows * inner);
  const int64_t pitch = (inner + 1) / 2, across = ceil_to(inner, kEach);
  auto *packed = lab::room<uint8_t>(rows * pitch, true), *back = lab::room<uint8_t>(rows * inner, true);
  Shape shape;
  shape.grid_x = int(ceil_to(across * rows, 256)), shape.threads = 256;
  launch(pack_kernel<4, false>, shape, nullptr, PackArgs{codes, packed, rows, inner, 4, false, false}, "pack");
  launch(pack_kernel<4, true>, shape, nullptr, PackArgs{back, packed, rows, inner, 4, false, true}, "unpack");
  for (int64_t i = 0; inner % 2 && i < rows; ++i)
    if (packed[i * pitch + pitch - 1] >> 4) return false;  // the half byte behind a row is 0
  return every(rows, inner, [&](int64_t i, int64_t j) {
    const int code = codes[i * inner + j] & 15;
    return (packed[i * pitch + j / 2] >> j % 2 * 4 & 15) == code && back[i * inner + j] == code;
  });
}

bool finds_what_is_not_finite(Random& random, int64_t rows, int64_t inner, unsigned seed) {
  const int64_t count = rows * inner, first = seed % 4 ? count - 1 - int64_t(random() % (count / 2)) : -1;
  auto* x = lab::room<float>(count);
  for (int64_t i = 0; i < count; ++i) x[i] = i == first || (first >= 0 && i > first && random() % 9 == 0) ? NAN : 1.0f;
  auto* found = lab::room<uint32_t>(1, true);
  *found = 0;
  launch(finite_kernel<kF32>, flat_shape(count), nullptr, FiniteArgs{x, kF32, count, found}, "finite");
  return *found == (first < 0 ? 0u : ~uint32_t(first / kEach));
}

struct Range {  // of the finite elements, and 0
  float low = 0, high = 0;
  void see(float x) {
    if (!std::isfinite(x)) return;
    low = x < low ? x : low, high = x > high ? x : high;
  }
};

bool quantizes_ranges(Random& random, int64_t rows, int64_t inner, unsigned seed) {
  const bool is_symmetric = seed % 2;
  if (seed % 3 == 0) rows = 3, inner += 8192 + 4096;  // longer than what waits in registers
  const int64_t group = seed % 3 == 1 ? 48 : inner, groups = (inner + group - 1) / group, pitch = padded(inner, 16);
  float* x = reals(random, rows * inner);
  auto* scale = lab::room<float>(rows * groups, true);
  auto *zero = lab::room<int32_t>(rows * groups, true), *sums = lab::room<int32_t>(rows * groups, true);
  auto* out = lab::room<uint8_t>(rows * pitch, true);
  const int32_t high = is_symmetric ? 127 : 255;
  Shape shape;
  shape.grid_x = int(rows * groups), shape.threads = kRangeThreads, shape.shared_bytes = kRangeThreads / 32 * 4;
  launch(dynamic_kernel<kF32, 8>, shape, nullptr,
         DynamicArgs{x, kF32, rows, inner, group, is_symmetric ? -127 : 0, high, scale, zero, sums, out, pitch, 8},
         "ranges");
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = inner; j < pitch; ++j)
      if (out[i * pitch + j]) return false;
  for (int64_t at = 0; at < rows * groups; ++at) {
    const int64_t i = at / groups, from = at % groups * group, to = from + group < inner ? from + group : inner;
    Range range;
    for (int64_t j = from; j < to; ++j) range.see(x[i * inner + j]);
    const Symmetric two = symmetric(-range.low > range.high ? -range.low : range.high, high);
    const Asymmetric one = asymmetric(range.low, range.high, high);
    int32_t sum = 0;
    for (int64_t j = from; j < to; ++j) {
      const float value = x[i * inner + j];
      const int32_t code = is_symmetric ? quantize_symmetric(value, two.reciprocal, high)
                                        : quantize(value, one.scale, -one.zero, high - one.zero) + one.zero;
      if (out[i * pitch + j] != uint8_t(code)) return false;
      sum += code;
    }
    if (scale[at] != (is_symmetric ? two.scale : one.scale) || zero[at] != (is_symmetric ? 0 : one.zero)) return false;
    if (sums[at] != sum) return false;
  }
  return true;
}

// columns: a scale for every few columns, whose rows take turns; else spans.
bool finds_ranges(Random& random, int64_t rows, int64_t inner, unsigned seed, bool columns) {
  float* x = reals(random, rows * inner);
  Placement place = {columns ? 1 : rows, 1, 1, inner};
  if (columns || seed % 3) place.group = columns ? 1 + seed % 3 : seed % 3 == 1 ? 512 : 40;
  place.columns = (inner + place.group - 1) / place.group;
  const int64_t count = place.rows * place.columns;
  auto* ends = lab::room<uint32_t>(2 * count, true);
  auto* scale = lab::room<float>(count, true);
  auto* zero = lab::room<int32_t>(count, true);
  launch_extremes(ExtremesArgs{x, kF32, rows, inner, place, ends}, nullptr);
  launch_found(FoundArgs{ends, count, 0, 255, 128, false, kF32, scale, nullptr, zero, nullptr, 1, 1}, nullptr);
  std::vector<Range> ranges(count);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < inner; ++j) ranges[i % place.rows * place.columns + j / place.group].see(x[i * inner + j]);
  for (int64_t at = 0; at < count; ++at) {
    const Asymmetric one = asymmetric(ranges[at].low, ranges[at].high, 255);
    if (scale[at] != one.scale || zero[at] != one.zero) return false;
  }
  return true;
}

bool finds_spans(Random& random, int64_t m, int64_t n, unsigned seed) {
  // More than one chunk a warp; of some seeds rows of whole chunks.
  return finds_ranges(random, 18, seed % 2 ? n * 64 : padded(n * 64, 512), seed, false);
}
bool finds_columns(Random& random, int64_t m, int64_t n, unsigned seed) {
  return finds_ranges(random, m * 9, n, seed, true);
}

bool rearranges(Random& random, int64_t rows, int64_t k, unsigned seed) {
  const bool turned = seed % 2;  // (k, n) as NumPy has it
  const int64_t batches = 2, pitch = padded(k, 16);
  if (seed % 3 == 0) rows = padded(rows, 4), k = padded(k, 4);
  auto* from = lab::random_room<uint8_t>(random, batches * rows * k);
  auto* to = lab::room<uint8_t>(batches * rows * pitch, true);
  const RearrangeArgs args = {from, rows * k, turned ? 1 : k, turned ? rows : 1, batches, rows, k, to, pitch};
  launch_rearrange(args, nullptr);
  return every(batches * rows, pitch, [&](int64_t i, int64_t j) {
    const uint8_t* element = from + i / rows * args.batch_step + i % rows * args.row_step + j * args.k_step;
    return to[i * pitch + j] == (j < k ? *element : 0);
  });
}

bool sums_rows(Random& random, int64_t rows, int64_t inner, unsigned seed) {
  const int64_t k = 9 * inner;
  const int64_t pitch = padded(k, 16);
  auto* from = lab::random_room<uint8_t>(random, rows * pitch);
  auto* sums = lab::room<int32_t>(rows, true);
  launch_sums(SumsArgs{from, rows, k, pitch, seed % 2 != 0, sums}, nullptr);
  for (int64_t i = 0; i < rows; ++i) {
    int32_t sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += seed % 2 ? int8_t(from[i * pitch + j]) : from[i * pitch + j];
    if (sums[i] != sum) return false;
  }
  return true;
}

bool widens(Random& random, int64_t rows, int64_t inner, unsigned) {
  const int64_t count = rows * inner;
  auto* sums = lab::random_room<int32_t>(random, count);
  auto* out = lab::room<int64_t>(count, true);
  launch_widen(WidenArgs{sums, count, false, out}, nullptr);
  launch_widen(WidenArgs{sums, count, true, out}, nullptr);
  return every(1, count, [&](int64_t, int64_t i) { return out[i] == 2 * int64_t(sums[i]); });
}

bool prepares(Random& random, int64_t rows, int64_t n, unsigned) {
  const Grain a(random, rows, 1, 1), w(random, n, 1, 1);
  auto* bias = lab::room<float>(n);
  for (int64_t j = 0; j < n; ++j) bias[j] = real(random);
  auto* codes = lab::room<int32_t>(rows * n, true);
  auto* m = lab::room<double>(rows * n, true);
  launch_prepare(PrepareArgs{rows, n, a.scale, w.scale, 1, 1, bias, codes, kHalfAway, false, 0.25f, m, nullptr},
                 nullptr);
  return every(rows, n, [&](int64_t i, int64_t j) {
    const double product = double(a.scale[i]) * double(w.scale[j]);
    const float unit = a.scale[i] * w.scale[j];
    return m[i * n + j] == product / 0.25 && codes[i * n + j] == int32_t(std::nearbyint(bias[j] / unit));
  });
}

bool finishes(Random& random, int64_t m, int64_t n, unsigned seed) {
  const int64_t batches = 2;
  if (seed % 2) n = padded(n, 16);
  auto* sums = lab::random_room<int32_t>(random, batches * m * n);
  const Grain g(random, batches * m, 1, 1);
  for (int64_t i = 0; i < g.count(); ++i) g.scale[i] *= 1e-6f;
  auto* out = lab::room<int8_t>(batches * m * n, true);
  Epilogue e = {};
  e.m = m, e.n = n, e.k = 1, e.output = kS8, e.out = out, e.out_batch = m * n, e.out_row = n;
  e.rounding = kHalfEven, e.m_values = g.scale, e.m_row = 1, e.y_zero = 3, e.low = -128, e.high = 127, e.y_scale = 1;
  launch_finish(sums, batches, e, nullptr);
  return every(batches * m, n, [&](int64_t i, int64_t j) {
    return out[i * n + j] == round_half_even(sums[i * n + j], g.scale[i], -131, 124) + 3;
  });
}

bool (*const kTrials[])(Random&, int64_t, int64_t, unsigned) = {
    quantizes<8>,     quantizes<4>, dequantizes,   requantizes, packs,     finds_what_is_not_finite,
    quantizes_ranges, finds_spans,  finds_columns, rearranges,  sums_rows, widens,
    prepares,         finishes,
};

}  // namespace

// m and n: of what lies in memory, rows and their length.
extern "C" int trial(int which, int m, int n, int, int, unsigned seed, char* message, long* conflicts) {
  std::mt19937 random(seed);
  lab::begin(seed);
  const int result = lab::verdict(message, [&] { return kTrials[which](random, m, n, seed); });
  *conflicts = lab::conflicts_of({"st.shared.4", "st.shared.16", "ld.shared.16"});
  return result;
}
