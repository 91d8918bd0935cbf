// Real activations times weights in groups on tiles of bfloat16, as exact as float32 (A11): x is three bfloat16 numbers.
//
//   x · 2ᵉ = x₁ + x₂ + x₃      exactly: 8 bits each, e of the row; q − z is a bfloat16 exactly, and so is every product
//   y = 2⁻ᵉ Σ_g s_g Σ_{k∈g} (x₃ + x₂ + x₁)(q − z)
//
//   for blocks of k and of columns (whose codes become bfloat16 once, and stay in L2), strips of 32 rows, runs of segments,
//   pairs of panels, segments of the run (at most 64 k of a group):
//     tiles    C = x₃·W + x₂·W + x₁·W, 32 k at a time, x₁ in two halves of 16; C leaves as its registers are needed again
//     add      p = fma(C, s, p); after the run, a sum of two floats: (Y, y) += p, exactly but for 2⁻⁴⁸
//
// Why x₁ in halves, the other half of the tile zeros: a tile is two chains of fma, each of every second k, their sum, and a
// last sum into C (as published; measured so, bit for bit). x₁ alone counts: 7 roundings in a chain of 8, 1 of the two, 1
// into C for each 16 k; a run (4 segments of 32 k, or 2 of 64) adds one fma each; y is rounded at the end. In all 7 + 1 +
// 4 + 2 + 1, or 7 + 1 + 2 + 4 + 1 = 15, and x₂ and x₃, which are 2⁷ and 2¹⁵ times smaller, 19/128 of one: of A11's 16.
// Why 2ᵉ: tiles count subnormals as zero. The largest of a row becomes 2⁹⁰, so that whatever is at least 2⁻¹⁶⁰ times as
// large has no subnormal part. Rows that hold something smaller, infinite or a NaN, and scales beyond 2⁻⁵⁰ … 2²², go the
// way of vectors (int4_floats.h).
#pragma once
#include "amx_turn.h"
#include "finish.h"
#include "int4.h"
#include "int4_scales512.h"
#include "unroll.h"
#include "x86.h"

namespace qk {
namespace QK_ISA {
namespace {

constexpr idx kStepK = kTileK / 2;                            // k of a tile
constexpr idx kStepBytes = kStepK * kPanel * 2;               // of a panel of weights
constexpr idx kParts = 4;                                     // x₃, x₂, x₁ of even, of odd 16 k
constexpr idx kStripRows = 2 * kTileRows, kSegmentSteps = 2;  // of 64 k
constexpr idx kPackedBytes = 16 << 20;                        // of x
constexpr int kHighest = 127 + 90, kLowest = 127 - 70;        // biased exponents of a row that is moved

using Sums = float[kStripRows * kPair];

// How K is cut: groups into steps of 32 k, the last of them filled up with zeros; two steps are a segment.
struct Steps {
  idx group, of_group, segments, run, groups;
  explicit Steps(const Int4& g) {
    group = min_of(g.group, g.k_whole());
    of_group = ceil_div(group, kStepK);
    segments = ceil_div(of_group, kSegmentSteps);  // of a group
    run = of_group == 1 ? 4 : 2;                   // segments whose sums are one float
    groups = g.groups();
  }
  idx all() const { return groups * of_group; }
  idx all_segments() const { return groups * segments; }
  idx first(idx segment) const { return segment / segments * of_group + segment % segments * kSegmentSteps; }
  idx count(idx segment) const { return min_of(kSegmentSteps, of_group - segment % segments * kSegmentSteps); }
};

// ---- weights: a panel's steps [k/2][16][2] bfloat16, q − z

template <class W>
struct Codes {
  static constexpr int kBits = W::kBits, kPlanes = 8 / kBits, kLines = kBits / 2;
  static constexpr idx kLineBytes = kPanel * kGroup;

  // Segments of a panel.
  static void make(const Int4& g, const Steps& s, idx panel, Range segments, uint8_t* to) {
    for (idx segment = segments.begin; segment < segments.end; ++segment) {
      const idx q = segment / s.segments, k = segment % s.segments * kSegmentSteps * kStepK, steps = s.count(segment);
      const idx first = q * s.group + k, end = min_of(min_of(s.group, g.k_whole() - q * s.group), k + steps * kStepK);
      const idx units = max_of(end - k, 0) / kUnit;
      units_of(g, (panel * s.groups + q) * kPanel, g.w + panel * g.w_panel + first * kBits / 8 * kPanel, units, to);
      const idx made = units * kUnit * kPanel * 2;
      memset(to + made, 0, size_t(steps * kStepBytes - made));
      to += steps * kStepBytes;
    }
  }

 private:
  static void units_of(const Int4& g, idx at, const uint8_t* w, idx units, uint8_t* to) {
    const __m512 whole = _mm512_loadu_ps(kWhole);
    const __m512i upper = _mm512_loadu_si512(kUppers);
    const __m512 zero = zeros_at(g, at);
    const auto value = [&](__m512i codes) QK_INLINE {  // the table is asked by the low 4 bits of a lane
      if (kBits != 4) codes = _mm512_and_si512(codes, _mm512_set1_epi32((1 << kBits) - 1));
      const __m512 code = kBits == 8 ? _mm512_cvtepi32_ps(codes) : _mm512_permutexvar_ps(codes, whole);
      return _mm512_castps_si512(_mm512_sub_ps(code, zero));
    };
    for (idx unit = 0; unit < units; ++unit, w += kLines * kLineBytes)
      unroll<kLines>([&](auto line) QK_INLINE {
        const __m512i loaded = _mm512_loadu_si512(w + line * kLineBytes);
        const __m512i x = W::kSigned ? _mm512_xor_si512(loaded, _mm512_set1_epi8(-128)) : loaded;
        unroll<kPlanes>([&](auto plane) QK_INLINE {
          unroll<2>([&](auto pair) QK_INLINE {
            const unsigned shift = unsigned(plane * kBits + pair * 16);
            const __m512i one = value(_mm512_srli_epi32(x, shift)), two = value(_mm512_srli_epi32(x, shift + 8));
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(one, upper, two));
            to += kLineBytes;
          });
        });
      });
  }
  static constexpr float kWhole[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  // Lane by lane, the upper words of two vectors; of two vectors one behind the other: kInOrder.
  static constexpr uint16_t kUppers[32] = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11, 43, 13, 45, 15, 47,
                                           17, 49, 19, 51, 21, 53, 23, 55, 25, 57, 27, 59, 29, 61, 31, 63};
};

// ---- rows of x: [step][part][rows][32] bfloat16

// 2ᵉ as biased exponents of two factors, for a row whose largest number has the biased exponent `most`.
struct Power {
  float one, two;
  static float of(int biased) {
    const uint32_t bits = uint32_t(biased) << 23;
    float x;
    memcpy(&x, &bits, 4);
    return x;
  }
  explicit Power(int e) : one(of(127 + e / 2)), two(of(127 + e - e / 2)) {}
};

// The power of two for a row; false where it has numbers that must go another way.
inline bool power_of(const float* x, idx k, int& e) {
  uint32_t most = 0, least = 0xFFFFFFFF;
  for (idx t = 0; t < k; ++t) {
    uint32_t bits;
    memcpy(&bits, x + t, 4);
    bits &= 0x7FFFFFFF;
    most = bits > most ? bits : most;
    least = bits - 1 < least ? bits - 1 : least;  // 0 is no least
  }
  const int high = int(most >> 23), low = int((least + 1) >> 23);
  e = most < 1 << 23 ? 0 : kHighest - high;
  return most == 0 || (most >= 1 << 23 && high < 255 && low > 0 && low + e >= kLowest);
}

inline bool powers_of(const float* x, idx m, idx k, int32_t* e) {
  for (idx i = 0; i < m; ++i) {
    int power;
    if (!power_of(x + i * k, k, power)) return false;
    e[i] = power;
  }
  return true;
}

struct Split {
  __m512i parts[3];  // upper halves
  explicit Split(__m512 x) {
    for (int p = 0; p < 3; ++p) {
      parts[p] = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(int(0xFFFF0000)));
      x = _mm512_sub_ps(x, _mm512_castsi512_ps(parts[p]));
    }
  }
};

inline void pack_reals(const Int4& g, const Steps& s, idx i, idx rows, const int32_t* e, uint8_t* to) {
  static constexpr uint16_t kInOrder[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                            33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i order = _mm512_loadu_si512(kInOrder), none = _mm512_setzero_si512();
  const idx part = rows * kTileK, step_bytes = kParts * part;
  for (idx r = 0; r < rows; ++r) {
    const Power power(e[r]);
    const __m512 one = _mm512_set1_ps(power.one), two = _mm512_set1_ps(power.two);
    const auto sixteen = [&](idx first, idx end) QK_INLINE {
      const idx have = min_of(max_of(end - first, 0), 16);
      const float* const x = g.x + (i + r) * g.k + (have ? first : 0);
      return Split(_mm512_mul_ps(_mm512_mul_ps(Lanes::some(x, have), one), two));
    };
    uint8_t* at = to + r * kTileK;
    for (idx q = 0; q < s.groups; ++q)
      for (idx step = 0; step < s.of_group; ++step, at += step_bytes) {
        const idx first = q * s.group + step * kStepK, end = min_of(min_of(g.k, (q + 1) * s.group), first + kStepK);
        const Split even = sixteen(first, end), odd = sixteen(first + 16, end);
        _mm512_storeu_si512(at, _mm512_permutex2var_epi16(even.parts[2], order, odd.parts[2]));
        _mm512_storeu_si512(at + part, _mm512_permutex2var_epi16(even.parts[1], order, odd.parts[1]));
        _mm512_storeu_si512(at + 2 * part, _mm512_permutex2var_epi16(even.parts[0], order, none));
        _mm512_storeu_si512(at + 3 * part, _mm512_permutex2var_epi16(none, order, odd.parts[0]));
      }
  }
}

// ---- a strip of rows past pairs of panels

// C = x · W of a segment, x₃ and x₂ of all steps first: what is added to x₁'s sums rounds them. What was there before
// leaves just before it is cleared (int4_x86_amx.cpp says why).
template <bool Lower, class Meanwhile>
QK_INLINE inline void multiply_reals(idx steps, idx rows, const uint8_t* a, const uint8_t* w, idx w_panel,
                                     float* before, const Meanwhile& meanwhile) {
  const idx upper = upper_rows(rows), part = rows * kTileK;
  QK_MEMORY_BARRIER();
  for (idx half = 0; half < 2; ++half)
    for (idx s = 0; s < steps; ++s) {
      const uint8_t* const here = w + s * kStepBytes;
      _tile_stream_loadd(6, here, 64);
      _tile_stream_loadd(7, here + w_panel, 64);
      for (idx p = 0; p < 2; ++p) {
        const uint8_t* const upper_a = a + (s * kParts + 2 * half + p) * part;
        const bool fresh = half + s + p == 0;
        _tile_loadd(4, upper_a, kTileK);
        if (fresh) QK_TURN_PAIR(0, before);
        _tile_dpbf16ps(0, 4, 6);
        if (fresh) QK_TURN_PAIR(1, before + kPanel);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (Lower) {
          _tile_loadd(5, upper_a + upper * kTileK, kTileK);
          if (fresh) QK_TURN_PAIR(2, before + upper * kPair);
          _tile_dpbf16ps(2, 5, 6);
          if (fresh) QK_TURN_PAIR(3, before + upper * kPair + kPanel);
          _tile_dpbf16ps(3, 5, 7);
        }
        meanwhile();
      }
    }
  QK_MEMORY_BARRIER();
}

struct Pair {  // of floats, what a sum is and what it lacks
  Sums high, low;
};

// partial (+)= c · s; at the end of a run sum += partial.
template <bool First, bool Last>
QK_INLINE inline void weigh(const __m512 (&scale)[2], Range rows, const float* c, float* partial, Pair& sum) {
  for (idx r = rows.begin; r < rows.end; ++r)
    unroll<2>([&](auto p) QK_INLINE {
      const idx at = r * kPair + p * kPanel;
      const __m512 x = _mm512_loadu_ps(c + at);
      const __m512 y = First ? _mm512_mul_ps(x, scale[p]) : _mm512_fmadd_ps(x, scale[p], _mm512_loadu_ps(partial + at));
      if constexpr (!Last) {
        _mm512_storeu_ps(partial + at, y);
      } else {  // Knuth's sum of two
        const __m512 was = _mm512_loadu_ps(sum.high + at), now = _mm512_add_ps(was, y), part = _mm512_sub_ps(now, was);
        const __m512 lacks = _mm512_add_ps(_mm512_sub_ps(was, _mm512_sub_ps(now, part)), _mm512_sub_ps(y, part));
        _mm512_storeu_ps(sum.high + at, now);
        _mm512_storeu_ps(sum.low + at, _mm512_add_ps(_mm512_loadu_ps(sum.low + at), lacks));
      }
    });
}

// Segments `from` … of a block of k, in runs: a run of all pairs, then the next run. What is late belongs to the item
// before.
struct RealWalk {
  idx pairs, end, run;
  idx pair = 0, first, segment;
  bool next() {
    if (++segment < min_of(first + run, end)) return true;
    segment = first;
    if (++pair < pairs) return true;
    pair = 0;
    segment = first += run;
    return first < end;
  }
  bool begins() const { return segment == first; }
  bool ends() const { return segment + 1 == min_of(first + run, end); }
};

template <class W>
struct Reals {
  struct Plan {
    Steps steps;
    idx pairs, segments, rows;  // of a block: panels in pairs, of k, of x that are packed at once
    idx panel, sums, partial, c, powers, a, w, total;  // bytes of a panel of the block; of the scratch
    explicit Plan(const Int4& g) : steps(g) {
      const idx deep = min_of(steps.of_group, kSegmentSteps);  // steps of a segment, at most
      segments = min_of(padded(steps.all_segments(), steps.run), kBlockK / kStepK / deep);
      panel = segments * deep * kStepBytes;
      pairs = min_of(ceil_div(g.n, kPair), max_of(g.l2_bytes / 2 / (2 * panel), 1));
      rows = min_of(g.m, max_of(kPackedBytes / (steps.all() * kParts * kTileK) / kStripRows, 1) * kStripRows);
      c = 0;
      partial = 2 * idx(sizeof(Sums));
      sums = partial + idx(sizeof(Sums));
      powers = sums + ceil_div(rows, kStripRows) * pairs * idx(sizeof(Pair));
      a = powers + padded(g.m * 4, 64);
      w = a + rows * steps.all() * kParts * kTileK;
      total = w + pairs * 2 * panel;
    }
  };
  static constexpr idx kBlockK = 1024;

  static size_t scratch_bytes(const Int4& g) { return size_t(Plan(g).total); }

  // False where x goes another way: nothing is done then.
  static bool block(const Int4& g, Range m, Range n, void* scratch) {
    const Plan plan(g);
    uint8_t* const room = static_cast<uint8_t*>(scratch);
    int32_t* const powers = reinterpret_cast<int32_t*>(room + plan.powers);
    if (!powers_of(g.x, g.m, g.k, powers)) return false;
    Reals work{g, plan, room, powers};
    for (idx i = m.begin; i < m.end; i += plan.rows) work.rows({i, min_of(i + plan.rows, m.end)}, n);
    _tile_release();
    return true;
  }

  const Int4& g;
  const Plan& plan;
  uint8_t* const room;
  const int32_t* const powers;
  idx prepared = 0;

  uint8_t* packed(idx row) const { return room + plan.a + row * plan.steps.all() * kParts * kTileK; }
  Pair* sums(idx row) const { return reinterpret_cast<Pair*>(room + plan.sums) + row / kStripRows * plan.pairs; }

  void rows(Range m, Range n) {
    const Steps& s = plan.steps;
    for (idx i = m.begin; i < m.end; i += kStripRows)
      pack_reals(g, s, i, min_of(kStripRows, m.end - i), powers + i, packed(i - m.begin));
    for (idx j = n.begin; j < n.end; j += plan.pairs * kPair) {
      const Range columns = {j, min_of(j + plan.pairs * kPair, n.end)};
      const idx pairs = ceil_div(columns.end - j, kPair);
      memset(sums(0), 0, size_t(ceil_div(m.end - m.begin, kStripRows) * plan.pairs) * sizeof(Pair));
      for (idx segment = 0; segment < s.all_segments(); segment += plan.segments) {
        const Range segments = {segment, min_of(segment + plan.segments, s.all_segments())};
        for (idx p = 0; p < 2 * pairs; ++p)
          Codes<W>::make(g, s, min_of(j / kPanel + p, ceil_div(g.n, kPanel) - 1), segments,
                         room + plan.w + p * plan.panel);
        for (idx i = m.begin; i < m.end; i += kStripRows) {
          const idx count = min_of(kStripRows, m.end - i);
          if (count != prepared) configure(prepared = count);
          const auto run = count > kTileRows ? &Reals::strip<true> : &Reals::strip<false>;
          (this->*run)(count, packed(i - m.begin), sums(i - m.begin), j / kPair, pairs, segments);
        }
      }
      for (idx i = m.begin; i < m.end; i += kStripRows)
        finish(i, min_of(kStripRows, m.end - i), sums(i - m.begin), columns);
    }
  }

  template <bool Lower>
  void strip(idx rows, const uint8_t* a, Pair* sum, idx first_pair, idx pairs, Range segments) {
    const Steps& s = plan.steps;
    Sums(&c)[2] = *reinterpret_cast<Sums(*)[2]>(room);
    float* const partial = reinterpret_cast<float*>(room + plan.partial);
    const idx panels = ceil_div(g.n, kPanel), begin = s.first(segments.begin);
    struct Late {  // sums of a segment that are still to be weighed
      __m512 scale[2];
      const float* c;
      Pair* to;
      bool begins, ends;
      idx row;
    } late = {{}, nullptr, nullptr, false, false, rows};
    const auto take = [&](const RealWalk& item, idx turn) QK_INLINE {
      const idx panel = 2 * (first_pair + item.pair), q = item.segment / s.segments;
      late.scale[0] = scales_at(g.scales, g.scale_type, (panel * s.groups + q) * kPanel);
      late.scale[1] = scales_at(g.scales, g.scale_type, (min_of(panel + 1, panels - 1) * s.groups + q) * kPanel);
      late.c = c[turn & 1], late.to = sum + item.pair, late.begins = item.begins(), late.ends = item.ends(),
      late.row = 0;
    };
    const auto weigh_some = [&](idx count) QK_INLINE {
      const Range some = {late.row, min_of(late.row + count, rows)};
      late.row = some.end;
      if (late.begins)
        late.ends ? weigh<true, true>(late.scale, some, late.c, partial, *late.to)
                  : weigh<true, false>(late.scale, some, late.c, partial, *late.to);
      else
        late.ends ? weigh<false, true>(late.scale, some, late.c, partial, *late.to)
                  : weigh<false, false>(late.scale, some, late.c, partial, *late.to);
    };
    RealWalk now{pairs, segments.end, s.run, 0, segments.begin, segments.begin};
    RealWalk before = now, before_that = now;
    idx turn = 0;
    for (bool more = true; more; ++turn) {
      const idx step = s.first(now.segment), steps = s.count(now.segment);
      const uint8_t* const w = room + plan.w + now.pair * 2 * plan.panel + (step - begin) * kStepBytes;
      if (turn > 1) take(before_that, turn - 2);
      const idx share = ceil_div(rows, kParts * steps);
      multiply_reals<Lower>(steps, rows, a + step * kParts * rows * kTileK, w, plan.panel,
                            turn ? c[(turn - 1) & 1] : nullptr, [&]() QK_INLINE { weigh_some(share); });
      before_that = before, before = now;
      more = now.next();
    }
    store_tiles<Lower>(rows, c[(turn - 1) & 1]);
    if (turn > 1) take(before_that, turn - 2), weigh_some(rows);
    take(before, turn - 1), weigh_some(rows);
  }

  void finish(idx i, idx rows, const Pair* sum, Range columns) const {
    alignas(64) int32_t tile[kStripRows * kPair];
    for (idx j = columns.begin; j < columns.end; j += kPair, ++sum) {
      for (idx r = 0; r < rows; ++r) {
        const Power back(-powers[i + r]);
        for (idx c = r * kPair; c < (r + 1) * kPair; c += kPanel) {
          const __m512 y = _mm512_add_ps(_mm512_loadu_ps(sum->high + c), _mm512_loadu_ps(sum->low + c));
          const __m512 x = _mm512_mul_ps(_mm512_mul_ps(y, _mm512_set1_ps(back.one)), _mm512_set1_ps(back.two));
          _mm512_storeu_si512(tile + c, _mm512_castps_si512(x));
        }
      }
      finish_rows(*g.epilogue, tile, kPair, i, rows, j, min_of(kPair, columns.end - j));
    }
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
