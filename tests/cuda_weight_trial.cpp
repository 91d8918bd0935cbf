// As cuda_trial.cpp, of products with packed weights. All numbers are small integers and powers of two, so that sums of
// halves are exact too, and any difference is a bug.
#include <algorithm>
#include "cuda_room.h"

using namespace qk;
using namespace qk::cuda;

namespace {

struct Trial {
  int bits;
  bool bytes, integers, bfloat;  // codes of x, and not halves; two-level factors; bfloat16
  int experts;                   // 0: one weight for all rows
  void (*run)(const WeightProduct&, Stream);
};

#if defined(TRIAL_HALVES)
const Trial kTrials[] = {
    {4, false, false, false, 0, [](const WeightProduct& p, Stream s) { launch_halves<Halves8>(p, s, "halves"); }},
    {8, false, false, true, 0, [](const WeightProduct& p, Stream s) { launch_halves<Halves64>(p, s, "halves"); }},
    {4, false, false, true, 3, [](const WeightProduct& p, Stream s) { launch_halves<Halves16>(p, s, "halves"); }},
};
#else
const Trial kTrials[] = {
    {4, true, false, false, 0, [](const WeightProduct& p, Stream s) { launch_codes<Codes32>(p, s, "codes"); }},
    {4, true, true, false, 0, [](const WeightProduct& p, Stream s) { launch_codes<Codes128>(p, s, "codes"); }},
    {4, true, false, false, 40, [](const WeightProduct& p, Stream s) { launch_codes<Codes16>(p, s, "codes"); }},
};
#endif

// docs/layouts.md n64k64: where the code of column n, k lies.
void place(uint8_t* codes, int bits, bool bytes, int64_t chunks, int n, int k, int code) {
  const int q = bytes ? k % 16 / 4 : k % 8 / 2, t = bytes ? k % 4 : k % 2 * 2 + k / 8 % 2, step = k / 16 % 4;
  const int64_t panel = (n / 64 * chunks + k / 64) * 4 + n / 16 % 4, lane = n % 8 * 4 + q;
  if (bits == 4) codes[panel * 512 + lane * 16 + step * 4 + t] |= code << n / 8 % 2 * 4;
  else codes[(panel * 2 + step / 2) * 512 + lane * 16 + step % 2 * 8 + n / 8 % 2 * 4 + t] = code;
}

int64_t of_group(int n, int64_t groups, int64_t group) {
  return (n / 64 * groups + group) * 64 + n % 8 * 8 + n / 16 % 4 * 2 + n / 8 % 2;
}

}  // namespace

extern "C" int trial(int which, int m, int n, int k, int, unsigned seed, char* message, long* conflicts) {
  const Trial& kind = kTrials[which];
  std::mt19937 random(seed);
  lab::begin(seed);
  WeightProduct p = {};
  Weights& w = p.w;
  w.n = n, w.k = k, w.bits = kind.bits, w.group = 32 << seed % 3, w.groups = ceil_to(k, w.group);
  const int64_t blocks = w.blocks(), chunks = w.chunks(), item = kind.bytes ? 1 : 2,
                experts = kind.experts ? kind.experts : 1;
  const int64_t each = blocks * w.groups * 64, places = each * experts, code_bytes = blocks * chunks * 512 * kind.bits;
  p.m = m, p.x_pitch = (k * item + 15) / 16 * 16, p.splits = kind.bytes || kind.experts ? 1 : 1 + seed / 2 % 2;
  auto* x = lab::room<uint8_t>(m * p.x_pitch);
  for (int64_t i = 0; i < m * p.x_pitch; ++i) x[i] = uint8_t(random());  // behind k as well: NaNs among them
  auto* codes = lab::room<uint8_t>(code_bytes * experts);
  for (int64_t i = 0; i < code_bytes * experts; ++i) codes[i] = 0;
  auto* offsets = lab::room<int32_t>(experts + 1);  // of many experts most have no rows
  for (int e = 0; e <= experts; ++e)
    offsets[e] = e == experts ? m : e ? std::min(m, offsets[e - 1] + int(random() % (experts > 9 ? 2 : m))) : 0;
  auto* scales = lab::room<float>(places);
  auto *zeros = lab::room<uint8_t>(places), *factors = lab::room<uint8_t>(places);
  for (int64_t i = 0; i < places; ++i) {
    scales[i] = random() % 2 ? 1.0f : 0.5f;
    zeros[i] = random() % 8;
    factors[i] = 1 + random() % 16;
  }
  std::vector<double> sums(size_t(m) * n);
  for (int i = 0; i < m; ++i)
    for (int at = 0; at < k; ++at) {
      const int value = int(random() % 9) - 4;
      if (kind.bytes) x[i * p.x_pitch + at] = uint8_t(value);
      else {
        const uint16_t half = kind.bfloat ? float_to_bfloat(float(value)) : float_to_half(float(value));
        memcpy(x + i * p.x_pitch + 2 * at, &half, 2);
      }
    }
  const auto x_at = [&](int i, int at) -> double {
    if (kind.bytes) return int8_t(x[i * p.x_pitch + at]);
    uint16_t half;
    memcpy(&half, x + i * p.x_pitch + 2 * at, 2);
    return emulator::half_value(half, kind.bfloat);
  };
  for (int expert = 0; expert < experts; ++expert)
    for (int j = 0; j < n; ++j)
      for (int at = 0; at < k; ++at) {
        const int code = random() % 16;
        const int64_t group = expert * each + of_group(j, w.groups, at / w.group);
        place(codes + expert * code_bytes, kind.bits, kind.bytes, chunks, j, at, code);
        const double weight = (code - zeros[group]) * double(kind.integers ? factors[group] : scales[group]);
        for (int i = offsets[expert]; i < offsets[expert + 1]; ++i) sums[size_t(i) * n + j] += x_at(i, at) * weight;
      }
  auto* bias = lab::room<float>(experts * n);
  for (int i = 0; i < experts * n; ++i) bias[i] = float(random() % 9);
  if (kind.experts)
    for (int expert = 0; expert < experts; ++expert)
      for (int i = offsets[expert]; i < offsets[expert + 1]; ++i)
        for (int j = 0; j < n; ++j) sums[size_t(i) * n + j] += bias[expert * n + j];
  auto* out = lab::room<float>(int64_t(m) * n, true);  // of integers as well
  for (int64_t i = 0; i < int64_t(m) * n; ++i) out[i] = 7e7f;
  p.x = x, p.x_type = kind.bytes ? kS8 : kind.bfloat ? kBf16 : kF16;
  w.codes = codes, w.scale_type = kF32, w.zeros = zeros;
  (kind.integers ? reinterpret_cast<const void*&>(w.factors) : w.scales) =
      kind.integers ? static_cast<const void*>(factors) : scales;
  p.parts = p.splits > 1 ? lab::room<float>(int64_t(m) * n * p.splits, true) : nullptr;
  Epilogue& e = p.epilogue;
  if (kind.experts) p.offsets = offsets, p.experts = experts, e.float_bias = bias;
  e.m = m, e.n = n, e.k = k, e.output = kind.integers ? kS32 : kF32, e.out = out, e.out_row = n;
  const int result = lab::verdict(message, [&] {
    kind.run(p, nullptr);
    for (int64_t i = 0; i < int64_t(m) * n; ++i) {
      double got = kind.integers ? double(reinterpret_cast<int32_t*>(out)[i]) : double(out[i]);
      if (p.splits > 1) {
        got = 0;
        for (int split = 0; split < p.splits; ++split) got += p.parts[int64_t(split) * m * n + i];
      }
      if (!(got == sums[i])) return false;
    }
    return true;
  });
  *conflicts = lab::conflicts_of({"ldmatrix", "cp.async", "ld.shared.16"});
  return result;
}
