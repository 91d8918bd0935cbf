// linear, weights of int4.h, x86_amx: a panel pair is unpacked once to int8, zero points taken off, and meets all rows.
//
//   for blocks of panels and of K (what stays in L2), strips of 32 rows, chunks of K, pairs of panels, groups g ascending:
//     tiles    C = A[32, group g] · W[group g, 32]     four tiles, 2×2; each is stored (the group before) just before it
//                                                      is cleared
//     unpack   the next group of weights               in the first strip only, while the tiles multiply
//     add      Y = fma(f32(C), scale, Y)               of two groups before
//
// While tiles multiply, 512-bit instructions start once a cycle, not twice (measured: 64 fma beside 4 multiplications are
// free, 128 double the time), so a group costs its multiplications, 64 cycles a 64 k, or its 128 conversions and fma,
// whichever is more, and its 128 stores: groups of 32 run at half the rate of groups of 64.
// Why zero points go into the unpacked bytes: w − z is in −15 … 15, so neither tiles nor float sums know of them.
// Codes of 8 bits are tiles as they lie, where groups are whole numbers of tiles: nothing is unpacked. A zero point does not
// fit a byte with them, and enters with the group's sum of A.
// Up to 64 rows are one pass: a group is unpacked into L1, and meets two strips there (1.43 ms for 1.57 at 64×4096×4096 in
// groups of 128). For more rows two strips at once are no faster.
// K in blocks of 1024 only where fewer than 4 pairs of all of K fit in L2: x passes once for 8 pairs, not for each (29 ms
// for 42 at 512×11008×4096); where more fit, sums that stay in L1 are worth as much.
// Groups below 64 make tiles of their own K: a multiplication takes the same 16 cycles, but loads shrink.
// What lost, at 512×4096×4096: the sums of 2 or 4 groups added together, so that Y is read once for all, 5 to 20 % slower
// (C leaves L1); software prefetch of the next tiles, 3 to 10 %; 256-bit fma (no faster port, twice the loads); bfloat16
// tiles for groups of 32, whose sums need no conversion: 45 ns a group for 51, in a loop of their own, and twice the
// unpacked bytes.
// Integer sums without factors, or whose products with them fit int8, are unpacked whole and run as products of bytes
// (amx_made.h).
#define QK_ISA x86_amx
#include <string.h>

#include "lanes_avx512.h"
#include "amx_made.h"
#include "amx_turn.h"
#include "int4_scales512.h"
#include "rows.h"
#include "unroll.h"
#include "x86.h"

namespace qk {
namespace x86_amx {
namespace {

constexpr double kGops = 1700, kCallUs = 0.5, kGbS = 25;
constexpr idx kStripRows = 2 * kTileRows, kMaxTileK = kTileK, kChunkK = 512, kDeepK = 1024;
constexpr idx kRingPairs = 4, kManyPairs = 8;  // at once: of one strip; of more
constexpr idx kLeastPairs = 4;                 // else K is cut

// How K is cut: every group into `steps` tiles of tile_k, the last of them filled up with zeros.
struct Cut {
  idx tile_k, steps, group_bytes, groups;
  explicit Cut(const Int4& g) {
    const idx group = min_of(g.group, g.k_whole());
    tile_k = min_of(group, kMaxTileK);
    steps = ceil_div(group, tile_k);
    group_bytes = steps * tile_k * kPanel;
    groups = g.groups();
  }
  idx k() const { return groups * steps * tile_k; }
};

// ---- unpacking: panel × group → [step][tile_k/4][16][4] int8, w − z

template <class W>
inline void unpack_group(const Int4& g, const Cut& cut, idx panel, idx q, int8_t* to) {
  constexpr int Bits = W::kBits, kPlanes = 8 / Bits, kLines = Bits / 2;
  constexpr idx kLineBytes = kPanel * kGroup, kUnitBytes = kLineBytes * 4;
  const __m512i mask = _mm512_set1_epi8(char((1 << Bits) - 1));
  __m512i zero = _mm512_set1_epi8(char(g.zero));
  if (Bits == 8) zero = _mm512_setzero_si512();
  else if (g.zeros) {
    const __m128i z = _mm_loadu_si128(reinterpret_cast<const __m128i*>(g.zeros + (panel * cut.groups + q) * kPanel));
    zero = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(z), _mm512_set1_epi32(0x01010101));
  }
  const idx first = q * g.group, have = min_of(g.group, g.k_whole() - first);
  const uint8_t* w = g.w + panel * g.w_panel + first * Bits / 8 * kPanel;
  const idx units = ceil_div(have, kUnit), all = cut.group_bytes / kUnitBytes;
  for (idx unit = 0; unit < units; ++unit, w += kLines * kLineBytes, to += kUnitBytes)
    unroll<kLines>([&](auto line) QK_INLINE {
      const __m512i x = _mm512_loadu_si512(w + line * kLineBytes);
      unroll<kPlanes>([&](auto plane) QK_INLINE {
        const __m512i codes = _mm512_and_si512(plane ? _mm512_srli_epi16(x, plane * Bits) : x, mask);
        _mm512_storeu_si512(to + (line * kPlanes + plane) * kLineBytes, _mm512_sub_epi8(codes, zero));
      });
    });
  if (units < all) memset(to, 0, size_t(all - units) * kUnitBytes);
}

// ---- rows of A as tiles read them: [group][step][rows][tile_k], zeros behind the group (`height` of them, of which g has `count`: the others are zeros).
void pack_strip(const Int4& g, const Cut& cut, idx i, idx count, idx height, uint8_t* to) {
  for (idx q = 0; q < cut.groups; ++q)
    for (idx s = 0; s < cut.steps; ++s) {
      const idx first = q * g.group + s * cut.tile_k;
      const idx end = min_of(min_of(first + cut.tile_k, (q + 1) * g.group), g.k), have = max_of(end - first, 0);
      for (idx r = 0; r < count; ++r, to += cut.tile_k) {
        const uint8_t* from = g.a + (i + r) * g.a_row + first * g.a_col;
        if (g.a_col == 1 && have == kMaxTileK) {
          memcpy(to, from, kMaxTileK);
          continue;
        }
        for (idx t = 0; t < have; ++t) to[t] = from[t * g.a_col];
        memset(to + have, 0, size_t(cut.tile_k - have));
      }
      memset(to, 0, size_t((height - count) * cut.tile_k));
      to += (height - count) * cut.tile_k;
    }
}

// Σ a of every row in every group.
template <bool ASigned>
void sum_strip(const Cut& cut, idx rows, const uint8_t* a, int32_t* sums) {
  for (idx q = 0; q < cut.groups; ++q, sums += rows) {
    memset(sums, 0, size_t(rows) * 4);
    for (idx s = 0; s < cut.steps; ++s)
      for (idx r = 0; r < rows; ++r, a += cut.tile_k) {
        int32_t sum = 0;
        for (idx t = 0; t < cut.tile_k; ++t) sum += ASigned ? int32_t(int8_t(a[t])) : int32_t(a[t]);
        sums[r] += sum;
      }
  }
}

// ---- a strip of rows past pairs of panels, group by group

using Sums = int32_t[kStripRows * kPair];

// Weights in L2 pass L1 by, where A's part stays: 9.2 ms against 9.8 at 512×4096×4096 in groups of 128.
#define QK_LOAD(tile, from)                      \
  do {                                           \
    if (far) _tile_stream_loadd(tile, from, 64); \
    else _tile_loadd(tile, from, 64);            \
  } while (0)

// C = A · W of a group. The sums of the group before it leave each tile just before it is cleared (before: where to, or
// null). Why not after all products: a tile that is stored holds its next product up, 34 ns a group against 19.
template <bool ASigned, bool WSigned, bool Lower>
inline void multiply(const Cut& cut, idx rows, const uint8_t* a, const int8_t* w, idx w_panel, bool far,
                     int32_t* before) {
  const idx upper = upper_rows(rows), a_step = rows * cut.tile_k, w_step = cut.tile_k * kPanel;
  const uint8_t* below = a + upper * cut.tile_k;
  QK_MEMORY_BARRIER();
  for (idx s = 0; s < cut.steps; ++s, a += a_step, below += a_step, w += w_step) {
    _tile_loadd(4, a, cut.tile_k);
    QK_LOAD(6, w);
    if (s == 0) QK_TURN_PAIR(0, before);
    QK_TDP(0, 4, 6);
    QK_LOAD(7, w + w_panel);
    if (s == 0) QK_TURN_PAIR(1, before + kPanel);
    QK_TDP(1, 4, 7);
    if constexpr (Lower) {
      _tile_loadd(5, below, cut.tile_k);
      if (s == 0) QK_TURN_PAIR(2, before + upper * kPair);
      QK_TDP(2, 5, 6);
      if (s == 0) QK_TURN_PAIR(3, before + upper * kPair + kPanel);
      QK_TDP(3, 5, 7);
    }
  }
  QK_MEMORY_BARRIER();
}

inline __m512i factors_at(const Int4& g, idx at) {
  if (!g.factors) return _mm512_set1_epi32(1);
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(g.factors + at)));
}

// What zero points take off a sum: kOfA · Σ (w − z), of activations; kOfW · Σ a, of codes of 8 bits.
enum Terms { kNone = 0, kOfA = 1, kOfW = 2, kOfBoth = 3 };
template <int Terms>
struct Of {
  static constexpr int kOf = Terms;
};

template <class W>
inline __m512i zeros_at(const Int4& g, idx at) {
  const __m512i moved = _mm512_set1_epi32(W::kSigned ? 128 : 0);
  if (!g.zeros) return _mm512_sub_epi32(_mm512_set1_epi32(g.zero), moved);
  return _mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(g.zeros + at))), moved);
}

struct Added {  // rows i … i + rows − 1, packed as `height`; a pair of panels, group q
  idx panels[2], q, i, rows, height;
  const int32_t* a_sums;  // [group][row], or null
};

// y (+)= c · scale of the group, in floats or integers; rows in fours, a pair of panels.
template <class W, bool Floats, bool First, int Of>
inline void add_rows(const Int4& g, const Cut& cut, const Added& at, const int32_t* c, int32_t* y) {
  __m512 scale[2];
  __m512i factor[2], of_a[2], of_w[2];
  unroll<2>([&](auto p) QK_INLINE {
    const idx here = (at.panels[p] * cut.groups + at.q) * kPanel;
    if constexpr (Floats) scale[p] = scales_at(g.scales, g.scale_type, here);
    else factor[p] = factors_at(g, here);
    if constexpr (Of & kOfA) of_a[p] = _mm512_loadu_si512(g.w_sums + here);
    if constexpr (Of & kOfW) of_w[p] = zeros_at<W>(g, here);
  });
  for (idx r = 0; r < at.rows; r += 4)
    unroll<8>([&](auto step) QK_INLINE {
      const int p = step % 2;
      const idx row = r + step / 2, here = row * kPair + p * kPanel;
      const __m512i total = First ? _mm512_setzero_si512() : _mm512_loadu_si512(y + here);
      __m512i acc = _mm512_loadu_si512(c + here);
      if constexpr (Of & kOfA) {
        const __m512i zero = _mm512_set1_epi32(row < at.rows ? g.a_zero[at.i + row] : 0);
        acc = _mm512_sub_epi32(acc, _mm512_mullo_epi32(of_a[p], zero));
      }
      if constexpr (Of & kOfW) {
        const __m512i sum = _mm512_set1_epi32(row < at.rows ? at.a_sums[at.q * at.height + row] : 0);
        acc = _mm512_sub_epi32(acc, _mm512_mullo_epi32(of_w[p], sum));
      }
      if constexpr (Floats)
        _mm512_storeu_si512(y + here, _mm512_castps_si512(_mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), scale[p],
                                                                          _mm512_castsi512_ps(total))));
      else _mm512_storeu_si512(y + here, _mm512_add_epi32(_mm512_mullo_epi32(acc, factor[p]), total));
    });
}

template <class W, bool Floats>
inline void add_group(const Int4& g, const Cut& cut, const Added& at, const int32_t* c, int32_t* y) {
  const auto add = [&](auto of) QK_INLINE {
    constexpr int kOf = decltype(of)::kOf;
    at.q ? add_rows<W, Floats, false, kOf>(g, cut, at, c, y) : add_rows<W, Floats, true, kOf>(g, cut, at, c, y);
  };
  if constexpr (W::kBits == 8) {
    if (at.a_sums) return g.a_zero ? add(Of<kOfBoth>{}) : add(Of<kOfW>{});
  }
  g.a_zero ? add(Of<kOfA>{}) : add(Of<kNone>{});
}

// The order of a pass: chunks of groups, pairs, groups, strips. What is late belongs to the item before, so that no pair
// waits for its last group.
struct Walk {
  idx pairs, end, chunk, strips;
  idx first, q, pair = 0, strip = 0;
  bool next() {
    if (++strip < strips) return true;
    strip = 0;
    if (++q < min_of(first + chunk, end)) return true;
    q = first;
    if (++pair < pairs) return true;
    pair = 0;
    q = first += chunk;
    return first < end;
  }
};

struct Weights {  // of some pairs and groups: unpacked, or an item at a time into a ring of two, or 8 bits in place
  int8_t* room;
  const int8_t* there;  // in place, from group 0 on; else null
  idx panel, first;     // bytes; group
  bool ring, fresh;
  // turn: of the ring, how many items came before
  int8_t* made(const Cut& cut, const Walk& item, idx turn) const {
    return ring ? room + (turn & 1) * 2 * panel : room + item.pair * 2 * panel + (item.q - first) * cut.group_bytes;
  }
  const int8_t* at(const Cut& cut, const Walk& item, idx turn) const {
    return there ? there + item.pair * 2 * panel + item.q * cut.group_bytes : made(cut, item, turn);
  }
};

struct
    Rows {  // of a pass: up to two strips, packed, as high as the first; a last one has rows of zeros for what it lacks
  idx i, count, strips, height;
  uint8_t* a;
  int32_t* sums;  // [strip][group][row], or null
  idx count_of(idx strip) const { return min_of(height, count - strip * height); }
};

template <bool ASigned, class W, bool Floats, bool Lower>
void pass(const Int4& g, const Cut& cut, const Rows& rows, idx first_pair, const Weights& w, Walk now, Sums (&c)[2],
          Sums* y, idx y_strip) {
  constexpr bool WSigned = W::kBits < 8 || W::kSigned;
  const idx panels = ceil_div(g.n, kPanel), height = rows.height, a_group = cut.steps * height * cut.tile_k;
  const idx a_strip = cut.groups * a_group;
  const auto unpack = [&](const Walk& item, idx turn, Range which) QK_INLINE {
    for (idx p = which.begin; p < which.end; ++p)
      unpack_group<W>(g, cut, min_of(2 * (first_pair + item.pair) + p, panels - 1), item.q,
                      w.made(cut, item, turn) + p * w.panel);
  };
  const auto add = [&](const Walk& item, idx turn) QK_INLINE {
    const idx panel = 2 * (first_pair + item.pair);
    const int32_t* const sums = rows.sums ? rows.sums + item.strip * height * cut.groups : nullptr;
    const Added at = {{panel, min_of(panel + 1, panels - 1)},
                      item.q,
                      rows.i + item.strip * height,
                      rows.count_of(item.strip),
                      height,
                      sums};
    add_group<W, Floats>(g, cut, at, c[turn & 1], y[item.strip * y_strip + item.pair]);
  };
  Walk before = now, before_that = now;
  if (w.fresh) unpack(now, 0, {0, 2});
  idx turn = 0, slot = 0;  // slot: of the ring
  for (bool more = true; more; ++turn) {
    const bool alone = w.there && 2 * (first_pair + now.pair) + 1 >= panels;  // multiplied twice, side by side
    const uint8_t* const a = rows.a + now.strip * a_strip + now.q * a_group;
    multiply<ASigned, WSigned, Lower>(cut, height, a, w.at(cut, now, slot), alone ? 0 : w.panel,
                                      !w.ring && now.strips == 1, turn ? c[(turn - 1) & 1] : nullptr);
    const Walk current = now;
    more = now.next();
    if (w.fresh) {  // the item after this one, in as many parts as there are strips
      Walk coming = current;
      coming.strip = coming.strips - 1;
      if (coming.next())
        unpack(coming, slot + 1, coming.strips == 1 ? Range{0, 2} : Range{current.strip, current.strip + 1});
    }
    slot += now.strip == 0;
    if (turn > 1) add(before_that, turn - 2);
    before_that = before, before = current;
  }
  store_tiles<Lower>(height, c[(turn - 1) & 1]);
  if (turn > 1) add(before_that, turn - 2);
  add(before, turn - 1);
}

template <bool ASigned, class W, bool Floats>
struct Tiles {
  struct Plan {
    Cut cut;
    idx pairs;                // at once
    idx deep;                 // groups at once
    idx chunk;                // groups whose part of A stays in L1 while the pairs pass
    idx high;                 // strips of a pass
    bool ring;                // one pass: weights are unpacked and forgotten
    bool there;               // they are read where they lie
    bool sums;                // of A, for zero points of codes of 8 bits
    idx panel;                // bytes of unpacked weights
    idx a, a_sums, w, total;  // of the scratch
    explicit Plan(const Int4& g) : cut(g) {
      there = W::kBits == 8 && cut.groups * cut.group_bytes <= g.w_panel;
      sums = W::kBits == 8 && (g.zeros || g.zero != (W::kSigned ? 128 : 0));
      high = g.m > kStripRows && g.m <= 2 * kStripRows ? 2 : 1;
      const bool one = g.m <= kStripRows, once = g.m <= high * kStripRows;
      ring = once && !there;
      const idx of_group = cut.group_bytes / kPanel;
      const idx fit = g.l2_bytes * 5 / 16 / (cut.groups * cut.group_bytes * 2);  // whole pairs
      deep = once || fit >= kLeastPairs ? cut.groups : min_of(cut.groups, max_of(kDeepK / of_group, 1));
      panel = there ? g.w_panel : (ring ? 1 : deep) * cut.group_bytes;
      pairs = min_of(ceil_div(g.n, kPair), one ? kRingPairs : once || fit < kLeastPairs ? kManyPairs : fit);
      chunk = one ? cut.groups : max_of((once ? kChunkK / 2 : kChunkK) / of_group, 1);
      const idx strips = deep == cut.groups ? high : ceil_div(g.m, kStripRows);
      a = (2 + strips * pairs) * idx(sizeof(Sums));
      a_sums = a + padded((g.m + 1) * cut.k(), 64);
      w = a_sums + (sums ? padded((g.m + 1) * cut.groups * 4, 64) : 0);
      total = w + (there ? 0 : (ring ? 2 : pairs) * 2 * panel);
    }
  };
  static size_t scratch_bytes(const Int4& g) { return size_t(Plan(g).total); }

  static void block(const Int4& g, Range m, Range n, void* scratch) {
    const Plan plan(g);
    const Cut& cut = plan.cut;
    uint8_t* const room = static_cast<uint8_t*>(scratch);
    Sums(&c)[2] = *reinterpret_cast<Sums(*)[2]>(room);
    Sums* const y = reinterpret_cast<Sums*>(room) + 2;
    const idx pass_rows = plan.high * kStripRows;
    const auto rows_from = [&](idx i) {
      const idx first = i - m.begin, count = min_of(pass_rows, m.end - i), strips = ceil_div(count, kStripRows);
      int32_t* const sums = reinterpret_cast<int32_t*>(room + plan.a_sums) + first * cut.groups;
      return Rows{
          i, count, strips, ceil_div(count, strips), room + plan.a + first * cut.k(), plan.sums ? sums : nullptr};
    };
    for (idx i = m.begin; i < m.end; i += pass_rows) {
      const Rows rows = rows_from(i);
      for (idx s = 0; s < rows.strips; ++s) {
        uint8_t* const to = rows.a + s * rows.height * cut.k();
        pack_strip(g, cut, i + s * rows.height, rows.count_of(s), rows.height, to);
        if (rows.sums) sum_strip<ASigned>(cut, rows.height, to, rows.sums + s * rows.height * cut.groups);
      }
    }
    idx prepared = 0;
    for (idx j0 = n.begin; j0 < n.end; j0 += plan.pairs * kPair) {
      const idx pairs = min_of(plan.pairs, ceil_div(n.end - j0, kPair));
      const int8_t* const there = reinterpret_cast<const int8_t*>(g.w + j0 / kPanel * g.w_panel);
      for (idx q = 0; q < cut.groups; q += plan.deep)
        for (idx i = m.begin; i < m.end; i += pass_rows) {
          const Rows rows = rows_from(i);
          if (rows.height != prepared) configure(prepared = rows.height, cut.tile_k);
          const Weights w = {reinterpret_cast<int8_t*>(room + plan.w),
                             plan.there ? there : nullptr,
                             plan.panel,
                             q,
                             plan.ring,
                             !plan.there && i == m.begin};
          const auto run = rows.height > kTileRows ? pass<ASigned, W, Floats, true> : pass<ASigned, W, Floats, false>;
          const Walk walk = {pairs, min_of(q + plan.deep, cut.groups), plan.chunk, rows.strips, q, q};
          Sums* const mine = y + (plan.deep == cut.groups ? 0 : (i - m.begin) / kStripRows * plan.pairs);
          run(g, cut, rows, j0 / kPair, w, walk, c, mine, plan.pairs);
          if (q + plan.deep < cut.groups) continue;
          for (idx s = 0; s < rows.strips; ++s)
            for (idx p = 0; p < pairs; ++p) {
              const idx j = j0 + p * kPair;
              finish_rows(*g.epilogue, mine[s * plan.pairs + p], kPair, i + s * rows.height, rows.count_of(s), j,
                          min_of(kPair, n.end - j));
            }
        }
    }
    _tile_release();
  }
};

// ---- integer sums whose weights, factors included, fit int8: unpacked to n16k4, then gemm's

template <class W>
void unpack_panel(const Int4& g, idx panel, uint8_t* to) {
  constexpr int Bits = W::kBits, kPlanes = 8 / Bits, kLines = Bits / 2;
  constexpr idx kLineBytes = kPanel * kGroup;
  const __m512i mask = _mm512_set1_epi8((1 << Bits) - 1), low = _mm512_set1_epi16(0xFF);
  const idx groups = g.groups(), k_whole = g.k_whole();
  const uint8_t* w = g.w + panel * g.w_panel;
  const auto of_columns = [&](const uint8_t* values, idx q, int one) QK_INLINE {  // a byte each → four times
    if (!values) return _mm512_set1_epi8(char(one));
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + (panel * groups + q) * kPanel));
    return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(x), _mm512_set1_epi32(0x01010101));
  };
  for (idx q = 0; q < groups; ++q) {
    const __m512i zero = of_columns(g.zeros, q, g.zero), factor = of_columns(g.factors, q, 1);
    const __m512i even = _mm512_and_si512(factor, low);
    const idx end = q + 1 < groups ? (q + 1) * g.group : k_whole;
    for (idx k = q * g.group; k < end; k += kUnit, w += kLines * kLineBytes)
      unroll<kLines>([&](auto line) QK_INLINE {
        const __m512i x = _mm512_loadu_si512(w + line * kLineBytes);
        unroll<kPlanes>([&](auto plane) QK_INLINE {
          const __m512i codes = _mm512_and_si512(plane ? _mm512_srli_epi16(x, plane * Bits) : x, mask);
          __m512i y = _mm512_sub_epi8(codes, zero);
          if (g.factors) {  // the low byte of a product of 16 bits is that of the low bytes
            const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(y, 8), even);
            y = _mm512_or_si512(_mm512_and_si512(_mm512_mullo_epi16(y, even), low), _mm512_slli_epi16(odd, 8));
          }
          _mm512_storeu_si512(to, y);
          to += kLineBytes;
        });
      });
  }
}

struct Bytes : Made {
  void pack(idx i, idx rows, idx k0, idx k, uint8_t* to) const { pack_bytes(product, i, rows, k0, k, to); }
};

template <bool ASigned, class W>
struct Unpacked {
  using Grouped = Tiles<ASigned, W, false>;

  static bool suits(const Int4& g) { return g.fits_int8 && !(g.factors && g.a_zero); }
  static size_t scratch_bytes(const Int4& g) {
    return suits(g) ? Made::scratch_bytes(product_of(g, 1)) : Grouped::scratch_bytes(g);
  }
  static void block(const Int4& g, Range m, Range n, void* scratch) {
    if (!suits(g)) return Grouped::block(g, m, n, scratch);
    Gemm p = product_of(g, 1);
    p.a = g.a, p.a_row = g.a_row, p.a_col = g.a_col, p.a_zero = g.a_zero, p.w_sums = g.w_sums;
    uint8_t* const room = static_cast<uint8_t*>(scratch);
    const auto run = ToReal<>::takes(*g.epilogue)      ? Strips<ASigned, true, ToReal<>, Bytes>::block
                     : g.epilogue->type == Written::u8 ? Strips<ASigned, true, ToCodes<uint8_t>, Bytes>::block
                                                       : Strips<ASigned, true, ToCodes<int8_t>, Bytes>::block;
    run(p, m, n, {{g, p, unpack_panel<W>, room}}, room + Made::room_bytes(p));
  }
};

}  // namespace

// clang-format off
#define QK_AMX_ROW(a, as, W, w, sums, floats, ...)                                                                    \
  {"linear_" a w sums "_32x32_x86_amx", a w sums, "x86_amx", as, floats, false, W::kSigned, W::kBits, kStripRows, kPair, 4,  \
   kGops, kCallUs, kGbS, __VA_ARGS__::scratch_bytes, __VA_ARGS__::block}
static const Int4Row int4_rows[] = {
    QK_AMX_ROW("s8", true, U4, "u4", "f32", true, Tiles<true, U4, true>),
    QK_AMX_ROW("u8", false, U4, "u4", "f32", true, Tiles<false, U4, true>),
    QK_AMX_ROW("s8", true, U4, "u4", "s32", false, Unpacked<true, U4>),
    QK_AMX_ROW("u8", false, U4, "u4", "s32", false, Unpacked<false, U4>),
    QK_AMX_ROW("s8", true, U2, "u2", "f32", true, Tiles<true, U2, true>),
    QK_AMX_ROW("u8", false, U2, "u2", "f32", true, Tiles<false, U2, true>),
    QK_AMX_ROW("s8", true, U2, "u2", "s32", false, Unpacked<true, U2>),
    QK_AMX_ROW("u8", false, U2, "u2", "s32", false, Unpacked<false, U2>),
    QK_AMX_ROW("s8", true, S8, "s8", "f32", true, Tiles<true, S8, true>),
    QK_AMX_ROW("u8", false, S8, "s8", "f32", true, Tiles<false, S8, true>),
    QK_AMX_ROW("s8", true, U8, "u8", "f32", true, Tiles<true, U8, true>),
    QK_AMX_ROW("u8", false, U8, "u8", "f32", true, Tiles<false, U8, true>)};
// clang-format on
const Int4List int4_list = {int4_rows, 12};

}  // namespace x86_amx
}  // namespace qk
