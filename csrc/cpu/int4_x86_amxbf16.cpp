// weight_only, 4- and 2-bit weights, x86_amxbf16 (A11, bfloat16): y = Σ_k bf16(x)·bf16(s·(q − z)), sums in float32 tiles.
//
// A block of weights becomes bfloat16 once, what stays in L2, and meets all strips of x, which become bfloat16 when they
// are packed; the rest is the pipeline of bytes (amx_strips.h) with another instruction, which takes 32 k for 64.
// A code is looked up, in one instruction, in a table of the sixteen whole numbers; it is weighed in float32 and rounded
// half away, which needs no instruction of its own: half a unit of rounding is added, and upper halves are what remains.
// Two roundings to 8 bits and at most k to 24: within A11's 2⁻⁷ up to k = 2¹⁵, and Python asks for no more.
// Subnormal x and weights count as zero.
// Source: Intel Architecture Instruction Set Extensions, chapter 3 (TDPBF16PS).
#define QK_ISA x86_amxbf16
#define QK_TDP(c, a, w) _tile_dpbf16ps(c, a, w)
#include "lanes_avx512.h"
#include "amx_made.h"
#include "int4_scales512.h"
#include "rows.h"
#include "unroll.h"
#include "x86.h"

namespace qk {
namespace x86_amxbf16 {
namespace {

constexpr double kGops = 2600, kCallUs = 1, kGbS = 12;
constexpr idx kMinM = 4, kBf16 = 2 /* bytes */, kWide = Lanes::kWidth;

constexpr float kNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
// Lane by lane, the upper words of two vectors.
constexpr uint16_t kUpper[32] = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11, 43, 13, 45, 15, 47,
                                 17, 49, 19, 51, 21, 53, 23, 55, 25, 57, 27, 59, 29, 61, 31, 63};

// One panel: lines of 16 columns × 4 k of codes → [k/2][16][2] bfloat16.
template <int Bits>
void dequantize_panel(const Int4& g, idx panel, uint8_t* to) {
  constexpr int kPlanes = 8 / Bits, kLines = Bits / 2;
  constexpr idx kLineBytes = kPanel * kGroup;
  const __m512 whole = _mm512_loadu_ps(kNumbers);
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_loadu_si512(kUpper);
  const idx groups = g.groups(), k_whole = g.k_whole();
  const uint8_t* w = g.w + panel * g.w_panel;
  for (idx q = 0; q < groups; ++q) {
    const idx at = (panel * groups + q) * kPanel;
    const __m512 scale = scales_at(g.scales, g.scale_type, at);
    const __m512 zero = _mm512_cvtepi32_ps(
        g.zeros ? _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(g.zeros + at)))
                : _mm512_set1_epi32(g.zero));
    const auto rounded = [&](__m512i codes) QK_INLINE {  // the table is asked by the low 4 bits of a lane
      if (Bits == 2) codes = _mm512_and_si512(codes, _mm512_set1_epi32(3));
      const __m512 code = _mm512_permutexvar_ps(codes, whole);
      return _mm512_add_epi32(_mm512_castps_si512(_mm512_mul_ps(_mm512_sub_ps(code, zero), scale)), half);
    };
    const idx end = q + 1 < groups ? (q + 1) * g.group : k_whole;
    for (idx k = q * g.group; k < end; k += kUnit, w += kLines * kLineBytes)
      unroll<kLines>([&](auto line) QK_INLINE {
        const __m512i x = _mm512_loadu_si512(w + line * kLineBytes);
        unroll<kPlanes>([&](auto plane) QK_INLINE {
          unroll<2>([&](auto pair) QK_INLINE {
            const unsigned shift = unsigned(plane * Bits + pair * 16);
            const __m512i first = rounded(_mm512_srli_epi32(x, shift)),
                          second = rounded(_mm512_srli_epi32(x, shift + 8));
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, upper, second));
            to += kPanel * 2 * kBf16;
          });
        });
      });
  }
}

struct Floats : Made {
  void pack(idx i, idx rows, idx k0, idx k, uint8_t* dst) const {
    const idx steps = ceil_div(k, kTileK);
    for (idx r = 0; r < rows; ++r) {
      const float* x = g.x + (i + r) * g.k + k0 / kBf16;
      uint8_t* to = dst + r * kTileK;
      for (idx s = 0, have = k / kBf16; s < steps; ++s, to += rows * kTileK, x += 2 * kWide, have -= 2 * kWide) {
        const __m512bh both = have >= 2 * kWide ? _mm512_cvtne2ps_pbh(Lanes::load(x + kWide), Lanes::load(x))
                                                : _mm512_cvtne2ps_pbh(Lanes::some(x + kWide, max_of(have - kWide, 0)),
                                                                      Lanes::some(x, min_of(have, kWide)));
        memcpy(to, &both, kTileK);
      }
    }
  }
};

template <int Bits>
struct Bf16 {
  static size_t scratch_bytes(const Int4& g) { return Made::scratch_bytes(product_of(g, kBf16)); }

  static void block(const Int4& g, Range m, Range n, void* scratch) {
    const Gemm p = product_of(g, kBf16);
    uint8_t* const room = static_cast<uint8_t*>(scratch);
    const auto run = ToReal<true>::takes(*g.epilogue) ? Strips<true, true, ToReal<true>, Floats>::block
                                                      : Strips<true, true, ToCodes<int8_t>, Floats>::block;
    run(p, m, n, {{g, p, dequantize_panel<Bits>, room}}, room + Made::room_bytes(p));
  }
};

}  // namespace

#define QK_BF16_ROW(w, bits)                     \
  {"weight_only_bf16" w "f32_32x32_x86_amxbf16", \
   "bf16" w "f32",                               \
   "x86_amxbf16",                                \
   true,                                         \
   true,                                         \
   true,                                         \
   bits,                                         \
   2 * kTileRows,                                \
   kPair,                                        \
   kMinM,                                        \
   kGops,                                        \
   kCallUs,                                      \
   kGbS,                                         \
   Bf16<bits>::scratch_bytes,                    \
   Bf16<bits>::block}
static const Int4Row int4_rows[] = {QK_BF16_ROW("u4", 4), QK_BF16_ROW("u2", 2)};
const Int4List int4_list = {int4_rows, 2};

}  // namespace x86_amxbf16
}  // namespace qk
