// Pools (A16) and softmax (A17) of codes, compiled once per ISA.
//
// A strip of results that lie side by side is made at a time, in L1: channels of a pixel where these are adjacent (NHWC),
// else columns of a line (NCHW). Tap by tap, each for the whole strip, so that the order of the float sum is the rule's.
// Columns of a strided window are copied together first: a byte each, and the loops over them are vectors again.
// Loops over bytes and integers are plain: the compiler makes each ISA's vectors of them.
#pragma once
#include "../pool.h"
#include "network.h"
#include "reals.h"

namespace qk {
namespace QK_ISA {
namespace {

constexpr idx kTogether = 4;  // rows of softmax whose sums run side by side: one is a chain of additions

struct Strip {
  idx image, y, x, c, count;  // output pixel and channel of the first result
};

inline bool lanes_are_channels(const Pool& p) { return p.x_step[3] == 1 && p.channels > 1; }

template <class Run>
inline void for_results(const Pool& p, Range lines, const Run& run) {
  const bool channels = lanes_are_channels(p);
  const idx outer = channels ? p.out_size[1] : p.channels, inner = channels ? p.channels : p.out_size[1];
  for (idx line = lines.begin; line < lines.end; ++line)
    for (idx i = 0; i < outer; ++i)
      for (idx j = 0; j < inner; j += kStrip) {
        const idx image = line / p.out_size[0], y = line % p.out_size[0], count = min_of(kStrip, inner - j);
        run(channels ? Strip{image, y, i, j, count} : Strip{image, y, j, i, count});
      }
}

// use(codes, first, n) for each tap inside of the image, row by row: n adjacent codes, the first of which belongs to
// result `first` of the strip.
template <class T, class Use>
inline void for_taps(const Pool& p, const Strip& s, const Use& use) {
  const bool channels = lanes_are_channels(p);
  const uint8_t* const base = p.x + s.image * p.x_step[0] + s.c * p.x_step[3];
  T copied[kStrip];
  for (idx ky = 0; ky < p.kernel[0]; ++ky) {
    const idx row = s.y * p.stride[0] - p.before[0] + ky * p.dilation[0];
    if (row < 0 || row >= p.size[0]) continue;
    for (idx kx = 0; kx < p.kernel[1]; ++kx) {
      const idx offset = kx * p.dilation[1] - p.before[1], stride = p.stride[1];
      // results whose tap is a column of the image
      idx first = offset < 0 ? ceil_div(-offset, stride) : 0;
      idx last = offset < p.size[1] ? (p.size[1] - 1 - offset) / stride + 1 : 0;
      first = max_of(first, s.x), last = min_of(last, channels ? s.x + 1 : s.x + s.count);
      if (first >= last) continue;
      const uint8_t* const from = base + row * p.x_step[1] + (first * stride + offset) * p.x_step[2];
      const idx step = channels ? 1 : stride * p.x_step[2], n = channels ? s.count : last - first;
      if (step != 1)
        for (idx i = 0; i < n; ++i) copied[i] = T(from[i * step]);
      use(step == 1 ? reinterpret_cast<const T*>(from) : copied, channels ? 0 : first - s.x, n);
    }
  }
}

template <class T>
inline void put_strip(const Pool& p, const Strip& s, const T* codes) {
  uint8_t* const to = static_cast<uint8_t*>(p.out) + s.image * p.out_step[0] + s.y * p.out_step[1] +
                      s.x * p.out_step[2] + s.c * p.out_step[3];
  const idx step = p.out_step[lanes_are_channels(p) ? 3 : 2];
  if (step == 1) memcpy(to, codes, size_t(s.count));
  else
    for (idx i = 0; i < s.count; ++i) to[i * step] = uint8_t(codes[i]);
}

template <class T>
void max_pool_block(const Pool& p, Range lines) {
  for_results(p, lines, [&](const Strip& s) {
    T best[kStrip];
    for (idx i = 0; i < s.count; ++i) best[i] = T(Ends<T>::low);
    for_taps<T>(p, s, [&](const T* codes, idx first, idx n) {
      T* const to = best + first;
      for (idx i = 0; i < n; ++i) to[i] = codes[i] > to[i] ? codes[i] : to[i];
    });
    put_strip(p, s, best);
  });
}

template <class T>
void avg_pool_block(const Pool& p, Range lines) {
  using L = Lanes;
  constexpr idx W = L::kWidth;
  const L::F scale = L::splat(p.scale), out_scale = L::splat(p.out_scale), out_zero = L::splat(float(p.out_zero));
  const L::I zero = L::splat(p.zero);
  for_results(p, lines, [&](const Strip& s) {
    float sum[kStrip], taps[kStrip];
    T codes[kStrip];
    for (idx i = 0; i < s.count; ++i) sum[i] = 0, taps[i] = p.count_pads ? float(p.kernel[0] * p.kernel[1]) : 0.0f;
    for_taps<T>(p, s, [&](const T* x, idx first, idx n) {
      float *const to = sum + first, *const counted = taps + first;
      const auto grown = [&](auto at) QK_INLINE {
        return L::add(at.get(to), L::mul(L::to_float(L::sub(at.get(x), zero)), scale));
      };
      idx i = 0;
      for (; i + W <= n; i += W) L::store(to + i, grown(Whole{i}));
      if (i < n) L::store_some(to + i, grown(Some{i, n - i}), n - i);
      if (!p.count_pads)
        for (i = 0; i < n; ++i) counted[i] += 1;
    });
    codes_of<false>(s.count, codes, [&](auto at) QK_INLINE {
      const L::F mean = L::div(at.get(sum), at.get(taps));  // of no taps: NaN, the lowest code
      return code_of<T>(L::add(L::div(mean, out_scale), out_zero));
    });
    put_strip(p, s, codes);
  });
}

// int32 sums, adjacent channels; the window is the image. Of channels side by side many at a time, else pixel by pixel.
template <class T>
void channel_sum_block(const Pool& p, Range lines) {
  const bool one_run = p.x_step[1] == p.size[1] * p.x_step[2];
  const idx rows = one_run ? 1 : p.size[0], pixels = p.size[0] * p.size[1] / max_of(rows, 1);
  for (idx image = lines.begin; image < lines.end; ++image) {
    int32_t* const out = reinterpret_cast<int32_t*>(static_cast<uint8_t*>(p.out) + image * p.out_step[0]);
    const uint8_t* const x = p.x + image * p.x_step[0];
    for (idx c = 0; c < p.channels; c += lanes_are_channels(p) ? kStrip : 1) {
      const idx count = lanes_are_channels(p) ? min_of(kStrip, p.channels - c) : 1;
      int32_t sum[kStrip] = {};
      for (idx row = 0; row < rows; ++row) {
        const uint8_t* const from = x + row * p.x_step[1] + c * p.x_step[3];
        if (count > 1) {
          for (idx i = 0; i < pixels; ++i) {
            const T* const codes = reinterpret_cast<const T*>(from + i * p.x_step[2]);
            for (idx j = 0; j < count; ++j) sum[j] += codes[j];
          }
        } else if (p.x_step[2] == 1) {
          int32_t total = 0;
          for (idx i = 0; i < pixels; ++i) total += T(from[i]);
          sum[0] += total;
        } else {
          for (idx i = 0; i < pixels; ++i) sum[0] += T(from[i * p.x_step[2]]);
        }
      }
      memcpy(out + c, sum, size_t(count) * 4);
    }
  }
}

// ---------------------------------------------------------------- A17

template <class T>
inline void softmax_codes(const T* x, idx n, const float* exponential, float factor, float total, int32_t zero,
                          T* out) {
  using L = Lanes;
  const L::F by = L::splat(factor), sum = L::splat(total);
  const L::F low = L::splat(float(Ends<T>::low - zero)), high = L::splat(float(Ends<T>::high - zero));
  for (idx j = 0; j < n; j += kStrip) {
    float e[kStrip];
    const idx some = min_of(kStrip, n - j);
    for (idx i = 0; i < some; ++i) e[i] = exponential[x[j + i]];
    codes_of<false>(some, out + j, [&](auto at) QK_INLINE {
      const L::F t = L::div(L::mul(at.get(e), by), sum);
      return L::add(L::to_int(L::min(L::max(t, low), high)), L::splat(zero));
    });
  }
}

// Rows of n codes; `scale` is the table of 256 exponentials, a_factor 1/s of the result, a_zero its zero point.
template <class T>
void softmax_block(const Elementwise& e, Range rows, Range) {
  const idx n = e.inner;
  for (idx i = rows.begin; i < rows.end; i += kTogether) {
    const idx count = min_of(kTogether, rows.end - i);
    const T* const x = static_cast<const T*>(e.in) + i * n;
    const float* exponential[kTogether];  // of a code of that row
    float total[kTogether] = {};
    for (idx r = 0; r < count; ++r) {
      T most = T(Ends<T>::low);
      for (idx j = 0; j < n; ++j) most = x[r * n + j] > most ? x[r * n + j] : most;
      exponential[r] = e.scale + 255 - most;
    }
    if (count == kTogether) {
      for (idx j = 0; j < n; ++j)
        for (idx r = 0; r < kTogether; ++r) total[r] += exponential[r][x[r * n + j]];
    } else {
      for (idx r = 0; r < count; ++r)
        for (idx j = 0; j < n; ++j) total[r] += exponential[r][x[r * n + j]];
    }
    for (idx r = 0; r < count; ++r)
      softmax_codes(x + r * n, n, exponential[r], e.a_factor, total[r], e.a_zero, static_cast<T*>(e.out) + (i + r) * n);
  }
}

// ---------------------------------------------------------------- the rows

// Nominal: kElementNs is of four bytes an element, and of one pass.
#define QK_POOL_OF(letters, T)                                                            \
  {"max_pool", letters letters, QK_STR(QK_ISA), kElementNs / 2, max_pool_block<T>},       \
      {"avg_pool", letters letters, QK_STR(QK_ISA), kElementNs * 2, avg_pool_block<T>}, { \
    "channel_sum", letters "s32", QK_STR(QK_ISA), kElementNs / 2, channel_sum_block<T>    \
  }
#define QK_POOL_ROWS                                                                        \
  static const PoolRow pool_rows[] = {QK_POOL_OF("s8", int8_t), QK_POOL_OF("u8", uint8_t)}; \
  const PoolList pool_list = {pool_rows, 6};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
