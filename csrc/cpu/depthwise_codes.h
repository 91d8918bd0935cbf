// Depthwise convolutions whose sums never leave the registers: what becomes 8-bit codes, half to even.
//
// The outputs of a line are one run of codes, pixels times channels. Four vectors of neighbouring outputs are summed for
// every output row that shares the quads, converted together and stored as one vector of bytes. Each of the four has its
// own place in the image and its own channels, so that any multiple of a vector's channels fills them.
// Why not sums of many pixels for one vector of channels, with the weights in registers: the conversion is more than half
// of the work, and takes four vectors at a time; loads of weights are hidden under it.
#pragma once
#include "conv.h"
#include "finish.h"
#include "unroll.h"

namespace qk {
namespace QK_ISA {
namespace {

struct QuadSteps {                       // bytes between …
  idx pixel, tap, group;                 // of quads: output pixels, taps in a row, groups of four rows
  idx w_tap, w_group, w_row;             // of weights: likewise, and output rows
  idx groups, taps, out_pixel, out_row;  // counts; elements of the sums between pixels and rows
};

// Of a vector of outputs: bytes to its quads, and to its channels in arrays of four bytes a channel.
struct VectorAt {
  idx quads, channels;
};

template <class D, class L, int Rows, class T, bool ClampsLow>
struct CodesBlock {
  static constexpr int kVectors = 4;
  static constexpr idx kOutputs = kVectors * L::kWidth;

  const QuadSteps& s;
  const Epilogue& e;
  const int32_t* start;
  idx out_row;  // codes between output rows

  QK_INLINE void run(const uint8_t* q, const uint8_t* w, const VectorAt (&at)[kVectors], T* out) const {
    typename D::Sum acc[Rows][kVectors];
    const auto bytes = [](const void* p, idx by) QK_INLINE { return static_cast<const uint8_t*>(p) + by; };
    unroll<kVectors>([&](auto v) QK_INLINE {
      const typename D::Sum first = D::start(reinterpret_cast<const int32_t*>(bytes(start, at[v].channels)));
      unroll<Rows>([&](auto r) QK_INLINE { acc[r][v] = first; });
    });
    for (idx g = 0; g < s.groups; ++g, q += s.group - s.taps * s.tap, w += s.w_group - s.taps * s.w_tap)
      for (idx t = 0; t < s.taps; ++t, q += s.tap, w += s.w_tap)
        unroll<kVectors>([&](auto v) QK_INLINE {
          const typename D::Quads x = D::activations(q + at[v].quads);
          unroll<Rows>([&](auto r) QK_INLINE {
            acc[r][v] = D::dot(acc[r][v], x, D::weights(w + r * s.w_row + at[v].channels));
          });
        });
    const typename L::F low = L::splat(float(e.low - e.zero)), high = L::splat(float(e.high - e.zero));
    const typename L::I zero = L::splat16(e.zero);
    unroll<Rows>([&](auto r) QK_INLINE {
      typename L::I y[kVectors];
      unroll<kVectors>([&](auto v) QK_INLINE {
        const typename L::F m = L::load(reinterpret_cast<const float*>(bytes(e.m, at[v].channels)));
        const typename L::F t = L::mul(L::to_float(acc[r][v]), m);
        y[v] = L::to_int(L::min(high, ClampsLow ? L::max(t, low) : t));  // finish.h has the rule
      });
      L::template store4_plus<false>(out + r * out_row, y[0], y[1], y[2], y[3], zero);
    });
  }

  // All outputs of `pixels` of a line. There are at least kOutputs; the last block overlaps the one before.
  void line(const uint8_t* q, const uint8_t* w, idx channels, idx pixels, T* out) const {
    const idx count = pixels * channels;
    VectorAt at[kVectors];
    const auto place = [&](idx first) {
      for (int v = 0; v < kVectors; ++v) {
        const idx f = first + v * L::kWidth;
        at[v] = {f / channels * s.pixel + f % channels * kGroup, f % channels * 4};
      }
    };
    place(0);
    const idx over = kOutputs % channels * kGroup, whole = kOutputs / channels * s.pixel, all = channels * kGroup;
    idx f = 0;
    for (; f + kOutputs <= count; f += kOutputs) {
      run(q, w, at, out + f);
      for (int v = 0; v < kVectors; ++v) {
        at[v].quads += whole + over, at[v].channels += over;
        const bool wraps = at[v].channels >= all;
        at[v].quads += wraps ? s.pixel - all : 0, at[v].channels -= wraps ? all : 0;
      }
    }
    if (f == count) return;
    place(count - kOutputs);
    run(q, w, at, out + count - kOutputs);
  }
};

// Can an epilogue be finished so?
inline bool makes_codes(const Epilogue& e) {
  return (e.type == Written::s8 || e.type == Written::u8) && e.rounding == kHalfEven && !e.m_row && !e.bias_row &&
         e.residual_type == Residual::none;
}

// One segment of a line: its quads and weights, the first output row and column, and how many there are of both.
struct Segment {
  const uint8_t *q, *w;
  const int32_t* start;
  idx line, x, rows, pixels, width, channels;  // width: of the line
};

template <class D, class T, bool ClampsLow, class L>
inline void codes_of_segment(const Epilogue& e, const QuadSteps& s, const Segment& at) {
  const idx out_row = at.width * at.channels;
  T* const out = static_cast<T*>(e.out) + at.line * out_row + at.x * at.channels;
  const auto run = [&](const auto& block) { block.line(at.q, at.w, at.channels, at.pixels, out); };
  if (at.rows == 1) return run(CodesBlock<D, L, 1, T, ClampsLow>{s, e, at.start, out_row});
  if (at.rows == 2) return run(CodesBlock<D, L, 2, T, ClampsLow>{s, e, at.start, out_row});
  if constexpr (4 * 4 <= D::kMostSums) {
    if (at.rows == 3) return run(CodesBlock<D, L, 3, T, ClampsLow>{s, e, at.start, out_row});
    return run(CodesBlock<D, L, 4, T, ClampsLow>{s, e, at.start, out_row});
  }
}

// False, and nothing done, where the sums have to be stored and finished by finish.h.
template <class D, class L = Lanes>
inline bool finished_segment(const Epilogue& e, const QuadSteps& s, const Segment& at) {
  if constexpr (D::kFinishes) {
    if (!makes_codes(e) || at.channels % D::kChannels || at.pixels * at.channels < 4 * D::kChannels ||
        at.rows * 4 > D::kMostSums)
      return false;
    if (e.type == Written::s8)
      e.low > -128 ? codes_of_segment<D, int8_t, true, L>(e, s, at) : codes_of_segment<D, int8_t, false, L>(e, s, at);
    else e.low > 0 ? codes_of_segment<D, uint8_t, true, L>(e, s, at) : codes_of_segment<D, uint8_t, false, L>(e, s, at);
    return true;
  }
  return false;
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
