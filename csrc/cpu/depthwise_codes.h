// Depthwise convolutions whose sums never leave the registers: what becomes 8-bit codes, half to even.
//
// The outputs of a line are one run of codes, pixels times channels. Four vectors of neighbouring outputs are summed for
// every output row that shares the quads, converted together and stored as one vector of bytes. Each of the four has its
// own channels, so that any multiple of a vector's channels fills them. All that belongs to a vector of channels is a
// record, adjacent: where its sums start, its multipliers, its weights in the order of the loop.
//
// Why not sums of many pixels for one vector of channels, with the weights in registers: the conversion is more than half
// of the work, and takes four vectors at a time; loads of weights are hidden under it.
// Why records: with weights where they are packed, four vectors need more addresses than there are registers, and gcc
// keeps them in vector registers: 45 cycles for 64 outputs of 3×3.
#pragma once
#include <string.h>

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

constexpr idx kVectors = 4;  // that are converted together

template <class L>
constexpr idx kVector = L::kWidth * 4;  // bytes of one

// Bytes of a record: two vectors, then the weights of `rows` output rows.
template <class L>
inline idx record_bytes(const QuadSteps& s, idx rows) {
  return kVector<L> * (2 + s.groups * s.taps * rows);
}

template <class L>
inline void write_records(const QuadSteps& s, const uint8_t* w, const int32_t* start, const float* m, idx rows,
                          idx channels, uint8_t* to) {
  constexpr idx kBytes = kVector<L>;
  for (idx c = 0; c < channels; c += L::kWidth) {
    memcpy(to, start + c, kBytes);
    memcpy(to + kBytes, m + c, kBytes);
    to += 2 * kBytes;
    for (idx g = 0; g < s.groups; ++g)
      for (idx t = 0; t < s.taps; ++t)
        for (idx r = 0; r < rows; ++r, to += kBytes)
          memcpy(to, w + g * s.w_group + t * s.w_tap + r * s.w_row + c * kGroup, kBytes);
  }
}

struct CodeRange {
  int32_t zero, low, high;
  bool is_signed;
};

// Rows output rows. Taps: of a kernel row, 0 where it is not known. Adjacent: the four vectors' quads are, too.
template <class D, class L, int Rows, int Taps, bool Adjacent>
struct CodesOfLine {
  static constexpr idx kOutputs = kVectors * L::kWidth, kBytes = kVector<L>;
  const QuadSteps& s;
  const CodeRange& range;
  idx out_row;  // codes between output rows

  // x: the quads of the four vectors, of the first alone where they are adjacent.
  QK_INLINE void run(const uint8_t* const* x, const uint8_t* const* record, uint8_t* out) const {
    typename D::Sum acc[Rows][kVectors];
    const auto begin = [&](auto v) QK_INLINE { return Adjacent ? x[0] + v * kBytes : x[v]; };
    unroll<kVectors>([&](auto v) QK_INLINE {
      const typename D::Sum first = D::start(reinterpret_cast<const int32_t*>(record[v]));
      unroll<Rows>([&](auto r) QK_INLINE { acc[r][v] = first; });
    });
    idx group = 0, w = 2 * kBytes;
    const auto step = [&](idx from) QK_INLINE {
      unroll<kVectors>([&](auto v) QK_INLINE {
        const typename D::Quads quads = D::activations(begin(v) + from);
        unroll<Rows>([&](auto r)
                         QK_INLINE { acc[r][v] = D::dot(acc[r][v], quads, D::weights(record[v] + w + r * kBytes)); });
      });
      w += Rows * kBytes;
    };
    for (idx g = s.groups; g > 0; --g, group += s.group) {
      idx from = group;
      if constexpr (Taps > 0) {
        unroll<Taps>([&](auto) QK_INLINE { step(from), from += s.tap; });
      } else {
        for (idx t = s.taps; t > 0; --t, from += s.tap) step(from);
      }
    }
    const typename L::F high = L::splat(float(range.high - range.zero));
    const typename L::I zero = L::splat16(range.zero), low = L::splat8(range.low);
    unroll<Rows>([&](auto r) QK_INLINE {
      typename L::I y[kVectors];
      unroll<kVectors>([&](auto v) QK_INLINE {
        const typename L::F m = L::load(reinterpret_cast<const float*>(record[v] + kBytes));
        y[v] = L::to_int(L::min(high, L::mul(L::to_float(acc[r][v]), m)));  // finish.h has the rule
      });
      uint8_t* const to = out + r * out_row;
      if (range.is_signed) L::store4_codes(reinterpret_cast<int8_t*>(to), y[0], y[1], y[2], y[3], zero, low);
      else L::store4_codes(to, y[0], y[1], y[2], y[3], zero, low);
    });
  }

  struct Place {  // of a vector
    idx pixel, channel;
  };

  // All outputs of `pixels` of a line. There are at least kOutputs; the last block overlaps the one before.
  void line(const uint8_t* q, const uint8_t* records, idx channels, idx pixels, uint8_t* out) const {
    const idx count = pixels * channels, size = record_bytes<L>(s, Rows);
    const auto at = [&](idx f) {
      const uint8_t *x[kVectors], *record[kVectors];
      for (idx v = 0; v < kVectors; ++v) {
        const idx i = f + v * L::kWidth, c = i % channels;
        x[v] = q + i / channels * s.pixel + c * kGroup;
        record[v] = records + c / L::kWidth * size;
      }
      run(x, record, out + f);
    };
    const uint8_t *x[kVectors], *record[kVectors], *const end = records + channels / L::kWidth * size;
    for (idx v = 0; v < kVectors; ++v) {
      const idx i = v * L::kWidth, c = i % channels;
      x[v] = q + i / channels * s.pixel + c * kGroup;
      record[v] = records + c / L::kWidth * size;
    }
    const idx over = kOutputs % channels, wrapped = s.pixel - channels * kGroup;
    const idx ahead = kOutputs / channels * s.pixel + over * kGroup, records_ahead = over / L::kWidth * size;
    idx f = 0;
    for (; f + kOutputs <= count; f += kOutputs) {
      run(x, record, out + f);
      for (idx v = 0; v < kVectors; ++v) {
        record[v] += records_ahead, x[v] += ahead;
        const idx back = record[v] >= end ? 1 : 0;
        record[v] -= -back & (end - records);
        if (!Adjacent) x[v] += -back & wrapped;
      }
    }
    if (f < count) at(count - kOutputs);
  }
};

// Can an epilogue be finished so?
inline bool makes_codes(const Epilogue& e) {
  return (e.type == Written::s8 || e.type == Written::u8) && e.rounding == kHalfEven && !e.m_row && !e.bias_row &&
         e.residual_type == Residual::none;
}

// One segment of a line: its quads, the records of its channels, the first output row and column, and their numbers.
struct Segment {
  const uint8_t *q, *records;
  idx line, x, rows, pixels, width, channels;  // width: of the line
};

template <class D>
inline bool finishes(const Epilogue& e, idx rows, idx channels, idx pixels) {
  if constexpr (D::kFinishes)
    return makes_codes(e) && channels % D::kChannels == 0 && pixels * channels >= kVectors * D::kChannels &&
           rows * kVectors <= D::kMostSums;
  return false;
}

template <class D, class L, int Rows, bool Adjacent>
inline void codes_of_rows(const Epilogue& e, const QuadSteps& s, const Segment& at) {
  const CodeRange range = {e.zero, e.low, e.high, e.type == Written::s8};
  const idx out_row = at.width * at.channels;
  uint8_t* const out = static_cast<uint8_t*>(e.out) + at.line * out_row + at.x * at.channels;
  const auto run = [&](const auto& line) { line.line(at.q, at.records, at.channels, at.pixels, out); };
  if constexpr (Rows <= 2)
    if (s.taps == 3) return run(CodesOfLine<D, L, Rows, 3, Adjacent>{s, range, out_row});
  if (s.taps == 5) return run(CodesOfLine<D, L, Rows, 5, Adjacent>{s, range, out_row});
  return run(CodesOfLine<D, L, Rows, 0, Adjacent>{s, range, out_row});
}

// What `finishes` has said yes to.
template <class D, class L = Lanes>
inline void finish_segment(const Epilogue& e, const QuadSteps& s, const Segment& at) {
  if constexpr (D::kFinishes) {
    const bool adjacent = s.pixel == at.channels * kGroup;
    if (at.rows == 1 && adjacent) return codes_of_rows<D, L, 1, true>(e, s, at);
    if (at.rows == 1) return codes_of_rows<D, L, 1, false>(e, s, at);
    if (at.rows == 2 && adjacent) return codes_of_rows<D, L, 2, true>(e, s, at);
    if (at.rows == 2) return codes_of_rows<D, L, 2, false>(e, s, at);
    if constexpr (4 * kVectors <= D::kMostSums)
      at.rows == 3 ? codes_of_rows<D, L, 3, false>(e, s, at) : codes_of_rows<D, L, 4, false>(e, s, at);
  }
}

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
