// Pools (A16) and softmax (A17) of codes, compiled once per ISA.
//
// Where channels are adjacent (NHWC), those of a pixel are lanes, which stay in registers from tap to tap. Else (NCHW) the
// columns of a line are, a strip of them at a time in L1, tap by tap; columns of a strided window are copied together
// first, a byte each. Either way the order of the float sum is the rule's.
// Bytes and integers are vectors of the compiler's, which makes each ISA's of them: 3×3 of 256 channels takes a third of
// what loops over arrays do, whose results it keeps in memory.
#pragma once
#include "../pool.h"
#include "network.h"
#include "reals.h"

namespace qk {
namespace QK_ISA {
namespace {

constexpr idx kTogether = 4;  // rows of softmax whose sums run side by side: one is a chain of additions

template <class T, int Bytes>
struct Of {
  typedef T Vector __attribute__((vector_size(Bytes)));
};

inline bool lanes_are_channels(const Pool& p) { return p.x_step[3] == 1 && p.out_step[3] == 1 && p.channels > 1; }

// ---------------------------------------------------------------- channels side by side

// The taps of an axis that are inside of the image, for an output coordinate; and the image's coordinate of the first.
struct Inside {
  idx count, first;
  Inside(const Pool& p, int axis, idx at) {
    const idx corner = at * p.stride[axis] - p.before[axis], gap = p.dilation[axis];
    const idx begin = corner < 0 ? ceil_div(-corner, gap) : 0;
    const idx end = corner < p.size[axis] ? min_of((p.size[axis] - 1 - corner) / gap + 1, p.kernel[axis]) : 0;
    count = max_of(end - begin, 0), first = corner + begin * gap;
  }
};

struct Pixel {
  const uint8_t* first;  // tap
  idx rows, columns, row_step, column_step;
  uint8_t* out;
};

// run(pixel) for every output pixel of the lines.
template <class Run>
inline void for_pixels(const Pool& p, Range lines, const Run& run) {
  for (idx line = lines.begin; line < lines.end; ++line) {
    const idx image = line / p.out_size[0], y = line % p.out_size[0];
    const Inside rows(p, 0, y);
    for (idx x = 0; x < p.out_size[1]; ++x) {
      const Inside columns(p, 1, x);
      const uint8_t* const from = p.x + image * p.x_step[0] + rows.first * p.x_step[1] + columns.first * p.x_step[2];
      uint8_t* const out = static_cast<uint8_t*>(p.out) + image * p.out_step[0] + y * p.out_step[1] + x * p.out_step[2];
      run(Pixel{from, columns.count ? rows.count : 0, columns.count, p.dilation[0] * p.x_step[1],
                p.dilation[1] * p.x_step[2], out});
    }
  }
}

template <class Use>
QK_INLINE inline void for_taps(const Pixel& x, idx channel, const Use& use) {
  for (idx row = 0; row < x.rows; ++row) {
    const uint8_t* from = x.first + row * x.row_step + channel;
    for (idx column = 0; column < x.columns; ++column, from += x.column_step) use(from);
  }
}

template <class T, int Bytes, int N>
inline void largest_of(const Pixel& x, idx channel) {
  using Vector = typename Of<T, Bytes>::Vector;
  Vector best[N];
  unroll<N>([&](auto i) QK_INLINE { best[i] = Vector{} + T(Ends<T>::low); });
  for_taps(x, channel, [&](const uint8_t* from) QK_INLINE {
    unroll<N>([&](auto i) QK_INLINE {
      Vector codes;
      memcpy(&codes, from + i * Bytes, Bytes);
      best[i] = codes > best[i] ? codes : best[i];
    });
  });
  unroll<N>([&](auto i) QK_INLINE { memcpy(x.out + channel + i * Bytes, &best[i], Bytes); });
}

// What is left of the channels behind the last whole vector: one more, over some of those before; or a code at a time.
template <class T>
inline void largest_of_channels(const Pixel& x, idx channels) {
  idx c = 0;
  for (; c + 256 <= channels; c += 256) largest_of<T, 64, 4>(x, c);
  for (; c + 64 <= channels; c += 64) largest_of<T, 64, 1>(x, c);
  if (c < channels && channels >= 64) return largest_of<T, 64, 1>(x, channels - 64);
  for (; c + 16 <= channels; c += 16) largest_of<T, 16, 1>(x, c);
  if (c < channels && channels >= 16) return largest_of<T, 16, 1>(x, channels - 16);
  for (; c < channels; ++c) {
    T best = T(Ends<T>::low);
    for_taps(x, c, [&](const uint8_t* from) { best = T(*from) > best ? T(*from) : best; });
    x.out[c] = uint8_t(best);
  }
}

struct Averaging {
  Lanes::F scale, out_scale, out_zero;
  Lanes::I zero;
  float every;  // tap counts, this many; 0: those inside

  explicit Averaging(const Pool& p)
      : scale(Lanes::splat(p.scale)),
        out_scale(Lanes::splat(p.out_scale)),
        out_zero(Lanes::splat(float(p.out_zero))),
        zero(Lanes::splat(p.zero)),
        every(p.count_pads ? float(p.kernel[0] * p.kernel[1]) : 0.0f) {}

  template <class At, class T>
  QK_INLINE Lanes::F added(Lanes::F sum, At at, const T* x) const {
    return Lanes::add(sum, Lanes::mul(Lanes::to_float(Lanes::sub(at.get(x), zero)), scale));
  }
  template <class T>
  QK_INLINE Lanes::I code(Lanes::F sum, Lanes::F taps) const {  // of no taps: NaN, the lowest code
    return code_of<T>(Lanes::add(Lanes::div(Lanes::div(sum, taps), out_scale), out_zero));
  }
};

// N vectors of channels, or some of the last one's.
template <class T, int N, class At>
inline void average_of(const Pixel& x, const Averaging& by, At at, idx n) {
  using L = Lanes;
  L::F sum[N];
  unroll<N>([&](auto i) QK_INLINE { sum[i] = L::splat(0.0f); });
  for_taps(x, at.j, [&](const uint8_t* from) QK_INLINE {
    At here = at;
    here.j = 0;
    unroll<N>([&](auto i)
                  QK_INLINE { sum[i] = by.added(sum[i], here, reinterpret_cast<const T*>(from) + i * L::kWidth); });
  });
  const L::F taps = L::splat(by.every > 0 ? by.every : float(x.rows * x.columns));
  T* const out = reinterpret_cast<T*>(x.out) + at.j;
  if constexpr (N == 4) {
    L::template store4<false>(out, by.code<T>(sum[0], taps), by.code<T>(sum[1], taps), by.code<T>(sum[2], taps),
                              by.code<T>(sum[3], taps));
  } else {
    L::store_some(out, by.code<T>(sum[0], taps), n);
  }
}

template <class T>
inline void average_of_channels(const Pixel& x, const Averaging& by, idx channels) {
  constexpr idx W = Lanes::kWidth;
  idx c = 0;
  for (; c + 4 * W <= channels; c += 4 * W) average_of<T, 4>(x, by, Whole{c}, W);
  for (; c + W <= channels; c += W) average_of<T, 1>(x, by, Whole{c}, W);
  if (c < channels) average_of<T, 1>(x, by, Some{c, channels - c}, channels - c);
}

// ---------------------------------------------------------------- columns side by side

struct Strip {
  idx image, y, x, c, count;  // output pixel and channel of the first result
};

template <class Run>
inline void for_results(const Pool& p, Range lines, const Run& run) {
  for (idx line = lines.begin; line < lines.end; ++line)
    for (idx c = 0; c < p.channels; ++c)
      for (idx x = 0; x < p.out_size[1]; x += kStrip)
        run(Strip{line / p.out_size[0], line % p.out_size[0], x, c, min_of(kStrip, p.out_size[1] - x)});
}

// use(codes, first, n) for each tap inside of the image, row by row: n adjacent codes, the first of which belongs to
// result `first` of the strip.
template <class T, class Use>
inline void for_taps(const Pool& p, const Strip& s, const Use& use) {
  const uint8_t* const base = p.x + s.image * p.x_step[0] + s.c * p.x_step[3];
  const Inside rows(p, 0, s.y);
  T copied[kStrip];
  for (idx ky = 0; ky < rows.count; ++ky) {
    const uint8_t* const row = base + (rows.first + ky * p.dilation[0]) * p.x_step[1];
    for (idx kx = 0; kx < p.kernel[1]; ++kx) {
      const idx offset = kx * p.dilation[1] - p.before[1], stride = p.stride[1];
      // results whose tap is a column of the image
      idx first = offset < 0 ? ceil_div(-offset, stride) : 0;
      idx last = offset < p.size[1] ? (p.size[1] - 1 - offset) / stride + 1 : 0;
      first = max_of(first, s.x), last = min_of(last, s.x + s.count);
      if (first >= last) continue;
      const uint8_t* const from = row + (first * stride + offset) * p.x_step[2];
      const idx step = stride * p.x_step[2], n = last - first;
      if (step != 1)
        for (idx i = 0; i < n; ++i) copied[i] = T(from[i * step]);
      use(step == 1 ? reinterpret_cast<const T*>(from) : copied, first - s.x, n);
    }
  }
}

template <class T>
inline void put_strip(const Pool& p, const Strip& s, const T* codes) {
  uint8_t* const to = static_cast<uint8_t*>(p.out) + s.image * p.out_step[0] + s.y * p.out_step[1] +
                      s.x * p.out_step[2] + s.c * p.out_step[3];
  const idx step = p.out_step[2];
  if (step == 1) memcpy(to, codes, size_t(s.count));
  else
    for (idx i = 0; i < s.count; ++i) to[i * step] = uint8_t(codes[i]);
}

// ---------------------------------------------------------------- A16

template <class T>
void max_pool_block(const Pool& p, Range lines) {
  if (lanes_are_channels(p))
    return for_pixels(p, lines, [&](const Pixel& x) { largest_of_channels<T>(x, p.channels); });
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
  constexpr idx W = Lanes::kWidth;
  const Averaging by(p);
  if (lanes_are_channels(p))
    return for_pixels(p, lines, [&](const Pixel& x) { average_of_channels<T>(x, by, p.channels); });
  for_results(p, lines, [&](const Strip& s) {
    float sum[kStrip], taps[kStrip];
    T codes[kStrip];
    for (idx i = 0; i < s.count; ++i) sum[i] = 0, taps[i] = by.every;
    for_taps<T>(p, s, [&](const T* x, idx first, idx n) {
      float *const to = sum + first, *const counted = taps + first;
      idx i = 0;
      for (; i + W <= n; i += W) Lanes::store(to + i, by.added(Whole{i}.get(to), Whole{i}, x));
      const Some left = {i, n - i};
      if (i < n) Lanes::store_some(to + i, by.added(left.get(to), left, x), n - i);
      if (by.every == 0)
        for (i = 0; i < n; ++i) counted[i] += 1;
    });
    codes_of<false>(s.count, codes, [&](auto at) QK_INLINE { return by.code<T>(at.get(sum), at.get(taps)); });
    put_strip(p, s, codes);
  });
}

template <class T>
struct Sixteen {};
template <>
struct Sixteen<int8_t> {
  using Type = int16_t;
};
template <>
struct Sixteen<uint8_t> {
  using Type = uint16_t;
};

constexpr idx kPixels = 128;  // whose codes add up within 16 bits

// 64 channels of at most kPixels pixels, added to `sum`.
template <class T>
inline void sum_of_channels(const uint8_t* x, idx pixels, idx step, int32_t* sum) {
  using Narrow = typename Of<T, 32>::Vector;
  using Wide = typename Of<typename Sixteen<T>::Type, 64>::Vector;
  Wide sums[2] = {};
  for (idx i = 0; i < pixels; ++i, x += step)
    unroll<2>([&](auto half) QK_INLINE {
      Narrow codes;
      memcpy(&codes, x + half * 32, 32);
      sums[half] += __builtin_convertvector(codes, Wide);
    });
  for (idx half = 0; half < 2; ++half)
    for (idx j = 0; j < 32; ++j) sum[half * 32 + j] += sums[half][j];
}

template <class T>
inline int32_t sum_of_pixels(const uint8_t* x, idx pixels, idx step) {
  int32_t sum = 0;
  if (step == 1)
    for (idx i = 0; i < pixels; ++i) sum += T(x[i]);
  else
    for (idx i = 0; i < pixels; ++i) sum += T(x[i * step]);
  return sum;
}

// int32 sums, adjacent channels; the window is the image.
template <class T>
void channel_sum_block(const Pool& p, Range lines) {
  const bool one_run = p.x_step[1] == p.size[1] * p.x_step[2];
  const idx rows = one_run ? 1 : p.size[0], pixels = one_run ? p.size[0] * p.size[1] : p.size[1], step = p.x_step[2];
  for (idx image = lines.begin; image < lines.end; ++image) {
    int32_t* const sum = reinterpret_cast<int32_t*>(static_cast<uint8_t*>(p.out) + image * p.out_step[0]);
    memset(sum, 0, size_t(p.channels) * 4);
    for (idx row = 0; row < rows; ++row) {
      const uint8_t* const x = p.x + image * p.x_step[0] + row * p.x_step[1];
      idx c = 0;
      for (; p.x_step[3] == 1 && c + 64 <= p.channels; c += 64)
        for (idx i = 0; i < pixels; i += kPixels)
          sum_of_channels<T>(x + i * step + c, min_of(kPixels, pixels - i), step, sum + c);
      for (; c < p.channels; ++c) sum[c] += sum_of_pixels<T>(x + c * p.x_step[3], pixels, step);
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
