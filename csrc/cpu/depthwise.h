// Depthwise convolution: channels in lanes, four taps of a column in the four bytes of a lane.
//
//   image rows r … r+3, all channels of all pixels of a segment        quads: one 32-bit lane a channel and pixel
//     r    p0c0 p0c1 … p1c0 p1c1 …                                       p0c0: r r+1 r+2 r+3   p0c1: …   p1c0: …
//     r+1  p0c0 p0c1 …                             interleaved once       ▲ one register of lanes × one of weights:
//     r+2  …                                       ───────────────►       four taps of as many channels
//     r+3  …
//
// Neighbouring pixels are adjacent in the image, so that the interleaving knows nothing of channels or columns, and
// edges are whole quads of zero points. With stride 1 the quads serve R = 4·⌈kh/4⌉ − kh + 1 output rows, each with its
// weights shifted by a byte (layout c4t4, docs/layouts.md): for 3×3, two rows of output from one interleaving, three
// products an output.
// Sums that become 8-bit codes never leave the registers (depthwise_codes.h); others go through a tile in L1.
// Why not nine taps as pairs of 16 bits (pmaddwd), nor widened and multiplied one by one: 5 and 9 products an output.
// Why quads are not made by one permutation of bytes (VBMI) of four broadcast quarters instead of twelve of words: no
// difference at stride 1, and stride 2 takes 92 µs for 86 (96@112); what it waits for is not the shuffles.
// Why segments are of 24 KiB: at stride 2 16 is the same, 32 costs 12 %, 48 20 %.
// Weight zero points: Σ(a − za)(w − zw) = Σ(a − za)w − zw·(Σa − taps·za); Σa is the same loop with weights of one.
//
// `D` names the instruction set: kChannels (of one Quads register or pair), Quads, Sum, kSums (how many Sums to keep),
// kFlip, activations(p), weights(p), start(int32*), dot(Sum, Quads, Quads), store(Sum, int32*), interleave(rows, n, to),
// kFinishes (is a Sum a vector of Lanes, so that depthwise_codes.h takes it?) and, if so, kMostSums.
#pragma once
#include <string.h>

#include "conv.h"
#include "depthwise_codes.h"
#include "finish.h"
#include "unroll.h"

namespace qk {
namespace QK_ISA {
namespace {

template <class D, int Rows, int Pixels>
inline void depthwise_pixels(const QuadSteps& s, const uint8_t* q0, const uint8_t* w0, const int32_t* start,
                             int32_t* out) {
  typename D::Sum acc[Rows][Pixels];
  const typename D::Sum first = D::start(start);
  unroll<Rows>([&](auto r) QK_INLINE { unroll<Pixels>([&](auto p) QK_INLINE { acc[r][p] = first; }); });
  for (idx g = 0; g < s.groups; ++g) {
    const uint8_t *q = q0 + g * s.group, *w = w0 + g * s.w_group;
    for (idx t = 0; t < s.taps; ++t, q += s.tap, w += s.w_tap) {
      typename D::Quads y[Rows];
      unroll<Rows>([&](auto r) QK_INLINE { y[r] = D::weights(w + r * s.w_row); });
      unroll<Pixels>([&](auto p) QK_INLINE {
        const typename D::Quads x = D::activations(q + p * s.pixel);
        unroll<Rows>([&](auto r) QK_INLINE { acc[r][p] = D::dot(acc[r][p], x, y[r]); });
      });
    }
  }
  unroll<Rows>([&](auto r) QK_INLINE {
    unroll<Pixels>([&](auto p) QK_INLINE { D::store(acc[r][p], out + r * s.out_row + p * s.out_pixel); });
  });
}

template <class D>
struct Depthwise {
  static constexpr idx kQuadBytes = 24 << 10;  // of a segment: what leaves room in L1
  static constexpr idx kSlack = 256;           // an interleaving, or a register of quads, may run over the end

  // Everything of one channel block, all pixels of a segment, `rows` output rows.
  template <int Rows>
  static void channels(const QuadSteps& s, const uint8_t* q, const uint8_t* w, const int32_t* start, idx pixels,
                       int32_t* out) {
    constexpr int kPixels = D::kSums / Rows > 1 ? D::kSums / Rows : 1;
    idx p = 0;
    for (; p + kPixels <= pixels; p += kPixels)
      depthwise_pixels<D, Rows, kPixels>(s, q + p * s.pixel, w, start, out + p * s.out_pixel);
    for (; p < pixels; ++p) depthwise_pixels<D, Rows, 1>(s, q + p * s.pixel, w, start, out + p * s.out_pixel);
  }

  static void segment(const QuadSteps& s, idx rows, const uint8_t* q, const uint8_t* w, idx w_step,
                      const int32_t* start, idx count, idx pixels, int32_t* out) {
    const auto run = rows == 1 ? channels<1> : rows == 2 ? channels<2> : rows == 3 ? channels<3> : channels<4>;
    for (idx c = 0; c < count; c += D::kChannels)
      run(s, q + c * kGroup, w + c * w_step, start ? start + c : kZeros, pixels, out + c);
  }

  static constexpr int32_t kZeros[16] = {};

  struct Plan {                                   // sizes, and how scratch is divided
    idx channels, rows, groups, pixels, columns;  // channels padded; of a segment: output rows, quads, pixels, columns
    idx quads, tile, second, start, ones, zeros, records, total;
  };

  static Plan plan(const ConvJob& job) {
    const ConvShape& s = job.shape;
    Plan p;
    p.channels = padded(s.channels, kPanel);
    p.groups = ceil_div(s.kernel[1], kGroup);
    p.rows = s.stride[1] == 1 && s.dilation[1] == 1 ? p.groups * kGroup - s.kernel[1] + 1 : 1;
    const idx reach = (s.kernel[2] - 1) * s.dilation[2] + 1;
    const idx fits = kQuadBytes / (p.groups * kGroup * s.channels);
    p.pixels = min_of(max_of((fits - reach) / s.stride[2] + 1, D::kSums), s.out[2]);
    p.columns = (p.pixels - 1) * s.stride[2] + reach;
    p.quads = 0;
    p.tile = padded(p.groups * p.columns * s.channels * kGroup + kSlack * p.groups, 64);
    const idx tile_bytes = p.rows * p.pixels * p.channels * 4;
    p.second = p.tile + tile_bytes;
    p.start = p.second + (job.w_zero ? tile_bytes : 0);
    p.ones = p.start + p.channels * 4;
    p.zeros = p.ones + (job.w_zero ? p.rows * p.groups * s.kernel[2] * kPanel * kGroup : 0);
    p.records = padded(p.zeros + p.columns * s.channels, 64);
    p.total = p.records + p.channels * kGroup * (2 + p.groups * s.kernel[2] * p.rows);
    return p;
  }

  static size_t scratch_bytes(const ConvJob& job) { return size_t(plan(job).total); }

  // The quads of output rows from `top` on, columns from `left` on (of the image, either may be outside).
  static void quads(const ConvJob& job, const Plan& p, const uint8_t* image, idx top, idx left, idx columns,
                    const uint8_t* zeros, uint8_t* dst) {
    const ConvShape& s = job.shape;
    const idx c = s.channels, step = p.rows > 1 ? 1 : s.dilation[1];
    const idx used = p.rows > 1 ? s.kernel[1] + p.rows - 1 : s.kernel[1];
    const idx first = min_of(max_of(-left, 0), columns), last = max_of(min_of(s.size[2] - left, columns), first);
    const int outside = uint8_t(job.x_zero ^ int(D::kFlip));
    for (idx g = 0; g < p.groups; ++g, dst += p.columns * c * kGroup + kSlack) {
      const uint8_t* rows[kGroup];
      for (idx t = 0; t < kGroup; ++t) {
        const idx tap = g * kGroup + t, h = top + tap * step;
        const bool inside = tap < used && h >= 0 && h < s.size[1];
        rows[t] = inside ? image + h * job.x_step[2] + (left + first) * c : zeros;
      }
      if (first > 0) memset(dst, outside, size_t(first * c * kGroup));
      D::interleave(rows, (last - first) * c, dst + first * c * kGroup);
      if (columns > last) memset(dst + last * c * kGroup, outside, size_t((columns - last) * c * kGroup));
    }
  }

  // Σ(a − za)(w − zw) of the rest: tile −= zw · (Σa' − taps·za')
  static void weight_zeros(const ConvJob& job, const Plan& p, idx rows, uint32_t zero, int32_t* tile,
                           const int32_t* sums) {
    const ConvShape& s = job.shape;
    const uint32_t of_zeros = uint32_t(s.kernel[1] * s.kernel[2]) * zero;
    for (idx i = 0; i < rows * p.pixels; ++i, tile += p.channels, sums += p.channels)
      for (idx c = 0; c < s.channels; ++c)
        tile[c] = int32_t(uint32_t(tile[c]) - uint32_t(job.w_zero[c]) * (uint32_t(sums[c]) - of_zeros));
  }

  // Output rows lines.begin … of all images, one below the other.
  static void block(const ConvJob& job, Range lines, void* scratch) {
    const ConvShape& s = job.shape;
    const Plan p = plan(job);
    uint8_t* const at = static_cast<uint8_t*>(scratch);
    int32_t *const tile = reinterpret_cast<int32_t*>(at + p.tile), *const second =
                                                                       reinterpret_cast<int32_t*>(at + p.second);
    int32_t* const start = reinterpret_cast<int32_t*>(at + p.start);
    const uint32_t zero = uint32_t(job.x_zero) + D::kShift;
    Epilogue rest = *job.epilogue;  // its integer bias is where the sums start
    const int32_t* const bias = rest.bias;
    rest.bias = nullptr;
    for (idx c = 0; c < p.channels; ++c)
      start[c] = c < s.channels ? int32_t(uint32_t(bias ? bias[c] : 0) - zero * uint32_t(job.w_sums[c])) : 0;
    memset(at + p.zeros, job.x_zero, size_t(p.columns * s.channels));
    const idx w_tap = p.channels * kGroup, w_group = w_tap * s.kernel[2], w_row = w_group * p.groups;
    QuadSteps steps = {s.stride[2] * s.channels * kGroup,
                       s.dilation[2] * s.channels * kGroup,
                       p.columns * s.channels * kGroup + kSlack,
                       w_tap,
                       w_group,
                       w_row,
                       p.groups,
                       s.kernel[2],
                       p.channels,
                       p.pixels * p.channels};
    QuadSteps of_ones = steps;
    of_ones.w_tap = kPanel * kGroup, of_ones.w_group = of_ones.w_tap * s.kernel[2];
    of_ones.w_row = of_ones.w_group * p.groups;
    if (job.w_zero) ones(job, p, of_ones, at + p.ones);
    idx records_of = 0;  // so many output rows
    for (idx line = lines.begin; line < lines.end;) {
      const idx image = line / s.out[1], row = line % s.out[1];
      const idx rows = min_of(min_of(p.rows, s.out[1] - row), lines.end - line);
      for (idx x = 0; x < s.out[2]; x += p.pixels) {
        const idx pixels = min_of(p.pixels, s.out[2] - x);
        const idx columns = (pixels - 1) * s.stride[2] + (s.kernel[2] - 1) * s.dilation[2] + 1;
        quads(job, p, job.x + image * job.x_step[0], row * s.stride[1] - s.before[1], x * s.stride[2] - s.before[2],
              columns, at + p.zeros, at);
        if (finishes<D>(rest, rows, s.channels, pixels) && !job.w_zero) {
          if (records_of != rows) write_records<Lanes>(steps, job.w, start, rest.m, rows, s.channels, at + p.records);
          records_of = rows;
          finish_segment<D>(rest, steps, {at, at + p.records, line, x, rows, pixels, s.out[2], s.channels});
          continue;
        }
        segment(steps, rows, at, job.w, kGroup, start, s.channels, pixels, tile);
        if (job.w_zero) {
          segment(of_ones, rows, at, at + p.ones, 0, nullptr, s.channels, pixels, second);
          weight_zeros(job, p, rows, zero, tile, second);
        }
        store(job, rest, p, line, rows, x, pixels, tile);
      }
      line += rows;
    }
  }

  static void ones(const ConvJob& job, const Plan& p, const QuadSteps& s, uint8_t* to) {
    for (idx r = 0; r < p.rows; ++r)
      for (idx g = 0; g < p.groups; ++g)
        for (idx i = 0; i < s.taps * kPanel; ++i)
          for (idx t = 0; t < kGroup; ++t) {
            const idx tap = g * kGroup + t - r;
            to[r * s.w_row + g * s.w_group + i * kGroup + t] = tap >= 0 && tap < job.shape.kernel[1];
          }
  }

  // Columns in parts no wider than finish_rows takes.
  static void store(const ConvJob& job, const Epilogue& e, const Plan& p, idx line, idx rows, idx x, idx pixels,
                    const int32_t* tile) {
    for (idx r = 0; r < rows; ++r)
      for (idx c = 0; c < job.shape.channels; c += kFinishColumns)
        finish_rows(e, tile + r * p.pixels * p.channels + c, p.channels, (line + r) * job.shape.out[2] + x, pixels, c,
                    min_of(kFinishColumns, job.shape.channels - c));
  }
};

// ---------------------------------------------------------------- instruction sets

// Any CPU: four products at a time, for the compiler to arrange. 16-bit factors, as the portable gemm.
template <bool ASigned, bool WSigned>
struct PlainQuads {
  static constexpr bool kFinishes = false;
  static constexpr idx kChannels = 4;
  static constexpr int kSums = 4;
  static constexpr unsigned kFlip = 0;
  static constexpr uint32_t kShift = 0;
  struct Quads {
    int16_t v[16];
  };
  struct Sum {
    int32_t v[4];
  };
  template <bool Signed>
  static Quads widen(const uint8_t* p) {
    Quads q;
    for (int i = 0; i < 16; ++i) q.v[i] = Signed ? int16_t(int8_t(p[i])) : int16_t(p[i]);
    return q;
  }
  static Quads activations(const uint8_t* p) { return widen<ASigned>(p); }
  static Quads weights(const uint8_t* p) { return widen<WSigned>(p); }
  static Sum start(const int32_t* p) {
    Sum s;
    memcpy(s.v, p, sizeof s.v);
    return s;
  }
  static Sum dot(Sum s, const Quads& x, const Quads& y) {
    for (int c = 0; c < 4; ++c) {
      int32_t sum = 0;
      for (int t = 0; t < 4; ++t) sum += x.v[4 * c + t] * y.v[4 * c + t];
      s.v[c] = int32_t(uint32_t(s.v[c]) + uint32_t(sum));
    }
    return s;
  }
  static void store(const Sum& s, int32_t* p) { memcpy(p, s.v, sizeof s.v); }
  static void interleave(const uint8_t* const* rows, idx n, uint8_t* dst) {
    for (idx i = 0; i < n; ++i)
      for (idx t = 0; t < kGroup; ++t) dst[i * kGroup + t] = rows[t][i];
  }
};

// Rows of whole vectors through B::interleave, the rest through a buffer: B::kBytes of each row at a time.
template <class B, unsigned Flip>
inline void interleave_rows(const uint8_t* const* rows, idx n, uint8_t* dst) {
  idx i = 0;
  for (; i + B::kBytes <= n; i += B::kBytes)
    B::template interleave<Flip>(rows[0] + i, rows[1] + i, rows[2] + i, rows[3] + i, dst + i * kGroup);
  if (i == n) return;
  uint8_t rest[kGroup][B::kBytes] = {};
  for (idx t = 0; t < kGroup; ++t) memcpy(rest[t], rows[t] + i, size_t(n - i));
  uint8_t last[kGroup * B::kBytes];
  B::template interleave<Flip>(rest[0], rest[1], rest[2], rest[3], last);
  memcpy(dst + i * kGroup, last, size_t((n - i) * kGroup));
}

// The byte dot product: V as of vnni.h, B interleaves.
template <class V, class B, bool ASigned, bool WSigned, int Sums>
struct VnniQuads {
  static constexpr bool kFinishes = true;      // a Sum is a vector of Lanes
  static constexpr int kMostSums = V::kLanes;  // with temporaries, what the registers hold
  static constexpr idx kChannels = V::kLanes;
  static constexpr int kSums = Sums;
  static constexpr unsigned kFlip = ASigned == WSigned ? 0x80 : 0;
  static constexpr uint32_t kShift = kFlip == 0 ? 0u : ASigned ? 128u : uint32_t(-128);
  using Quads = typename V::Reg;
  using Sum = typename V::Reg;
  static Quads activations(const uint8_t* p) { return V::load(p); }
  static Quads weights(const uint8_t* p) { return V::load(p); }
  static Sum start(const int32_t* p) { return V::load(reinterpret_cast<const uint8_t*>(p)); }
  static Sum dot(Sum s, Quads x, Quads y) { return WSigned ? V::mul_add(s, x, y) : V::mul_add(s, y, x); }
  static void store(Sum s, int32_t* p) { V::store(p, s); }
  static void interleave(const uint8_t* const* rows, idx n, uint8_t* dst) { interleave_rows<B, kFlip>(rows, n, dst); }
};

// 16-bit factors: V as of widen.h. Two registers, whose pairs of lanes are joined when they are stored.
template <class V, class B, bool ASigned, bool WSigned, int Sums>
struct WidenQuads {
  static constexpr bool kFinishes = false;
  static constexpr idx kChannels = 2 * V::kCols;
  static constexpr int kSums = Sums;
  static constexpr unsigned kFlip = 0;
  static constexpr uint32_t kShift = 0;
  struct Quads {
    typename V::Reg a, b;
  };
  struct Sum {
    typename V::Reg a, b;
    const int32_t* start;
  };
  template <bool Signed>
  static Quads widen(const uint8_t* p) {
    return {V::template widen<Signed>(p), V::template widen<Signed>(p + V::kCols * kGroup)};
  }
  static Quads activations(const uint8_t* p) { return widen<ASigned>(p); }
  static Quads weights(const uint8_t* p) { return widen<WSigned>(p); }
  static Sum start(const int32_t* p) { return {V::zero(), V::zero(), p}; }
  static Sum dot(Sum s, const Quads& x, const Quads& y) {
    return {V::mul_add(s.a, x.a, y.a), V::mul_add(s.b, x.b, y.b), s.start};
  }
  static void store(const Sum& s, int32_t* p) {
    int32_t sums[kChannels];
    V::join(s.a, s.b, sums);
    for (idx c = 0; c < kChannels; ++c) p[c] = int32_t(uint32_t(sums[c]) + uint32_t(s.start[c]));
  }
  static void interleave(const uint8_t* const* rows, idx n, uint8_t* dst) { interleave_rows<B, 0>(rows, n, dst); }
};

}  // namespace

// QK_DEPTHWISE_ROWS(tile, gops): the list of an ISA file that has defined `template <bool, bool> struct QuadsIsa`.
#define QK_DEPTHWISE_ROW(types, tile, gops, as, ws) \
  {"conv_" types "_" tile "_" QK_STR(QK_ISA),       \
   types,                                           \
   QK_STR(QK_ISA),                                  \
   as,                                              \
   ws,                                              \
   gops,                                            \
   Depthwise<QuadsIsa<as, ws>>::scratch_bytes,      \
   Depthwise<QuadsIsa<as, ws>>::block}

#define QK_DEPTHWISE_ROWS(tile, gops)                                                                               \
  static const DepthwiseRow depthwise_rows_here[] = {                                                               \
      QK_DEPTHWISE_ROW("u8s8s32", tile, gops, false, true), QK_DEPTHWISE_ROW("s8s8s32", tile, gops, true, true),    \
      QK_DEPTHWISE_ROW("s8u8s32", tile, gops, true, false), QK_DEPTHWISE_ROW("u8u8s32", tile, gops, false, false)}; \
  const DepthwiseList depthwise = {depthwise_rows_here, 4};

}  // namespace QK_ISA
}  // namespace qk
