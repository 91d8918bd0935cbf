// weight_only, weights of int4.h, x86_amxbf16 (A11, bfloat16): y = Σ_k bf16(x)·bf16(s·(q − z)), sums in float32 tiles.
//
// A block of weights becomes bfloat16 once, what stays in L2, and meets all strips of x, which become bfloat16 when they
// are packed; the rest is the pipeline of bytes (amx_strips.h) with another instruction, which takes 32 k for 64.
// A code is looked up, in one instruction, in a table of the sixteen whole numbers; it is weighed in float32 and rounded
// half away, which needs no instruction of its own: half a unit of rounding is added, and upper halves are what remains.
// Two roundings to 8 bits and at most k to 24: within A11's 2⁻⁷ up to k = 2¹⁵, and Python asks for no more.
// Subnormal x and weights count as zero.
// The rows of float32 are amx_reals.h's.
// Source: Intel Architecture Instruction Set Extensions, chapter 3 (TDPBF16PS).
#define QK_ISA x86_amxbf16
#define QK_TDP(c, a, w) _tile_dpbf16ps(c, a, w)
#include "lanes_avx512.h"
#include "amx_made.h"
#include "amx_reals.h"
#include "int4_scales512.h"
#include "int4_zmm_floats.h"
#include "rows.h"
#include "unroll.h"
#include "x86.h"

namespace qk {
namespace x86_amxbf16 {
namespace {

constexpr double kGops = 2600, kFloatGops = 550, kCallUs = 1, kGbS = 12, kFloatGbS = 8;
constexpr idx kMinM = 4, kBf16 = 2 /* bytes */, kWide = Lanes::kWidth;

constexpr float kNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
// Lane by lane, the upper words of two vectors.
constexpr uint16_t kUpper[32] = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11, 43, 13, 45, 15, 47,
                                 17, 49, 19, 51, 21, 53, 23, 55, 25, 57, 27, 59, 29, 61, 31, 63};

// One panel: lines of 16 columns × 4 k of codes → [k/2][16][2] bfloat16.
template <class W>
void dequantize_panel(const Int4& g, idx panel, uint8_t* to) {
  constexpr int Bits = W::kBits, kPlanes = 8 / Bits, kLines = Bits / 2;
  constexpr idx kLineBytes = kPanel * kGroup;
  const __m512 whole = _mm512_loadu_ps(kNumbers);
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_loadu_si512(kUpper);
  const idx groups = g.groups(), k_whole = g.k_whole();
  const uint8_t* w = g.w + panel * g.w_panel;
  for (idx q = 0; q < groups; ++q) {
    const idx at = (panel * groups + q) * kPanel;
    const __m512 scale = scales_at(g.scales, g.scale_type, at);
    const __m512 zero = zeros_at(g, at);
    const auto rounded = [&](__m512i codes) QK_INLINE {  // the table is asked by the low 4 bits of a lane
      if (Bits != 4) codes = _mm512_and_si512(codes, _mm512_set1_epi32((1 << Bits) - 1));
      const __m512 code = Bits == 8 ? _mm512_cvtepi32_ps(codes) : _mm512_permutexvar_ps(codes, whole);
      return _mm512_add_epi32(_mm512_castps_si512(_mm512_mul_ps(_mm512_sub_ps(code, zero), scale)), half);
    };
    const idx end = q + 1 < groups ? (q + 1) * g.group : k_whole;
    for (idx k = q * g.group; k < end; k += kUnit, w += kLines * kLineBytes)
      unroll<kLines>([&](auto line) QK_INLINE {
        const __m512i loaded = _mm512_loadu_si512(w + line * kLineBytes);
        const __m512i x = W::kSigned ? _mm512_xor_si512(loaded, _mm512_set1_epi8(-128)) : loaded;
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

struct MadeFloats : Made {
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

template <class W>
struct Bf16 {
  static size_t scratch_bytes(const Int4& g) { return Made::scratch_bytes(product_of(g, kBf16)); }

  static void block(const Int4& g, Range m, Range n, void* scratch) {
    const Gemm p = product_of(g, kBf16);
    uint8_t* const room = static_cast<uint8_t*>(scratch);
    const auto run = ToReal<true>::takes(*g.epilogue) ? Strips<true, true, ToReal<true>, MadeFloats>::block
                                                      : Strips<true, true, ToCodes<int8_t>, MadeFloats>::block;
    run(p, m, n, {{g, p, dequantize_panel<W>, room}}, room + Made::room_bytes(p));
  }
};

template <class W>
struct Float32 {
  using Vectors = Floats<ZmmFloats, W>;

  static size_t scratch_bytes(const Int4& g) {
    return size_t(max_of(idx(Reals<W>::scratch_bytes(g)), idx(Vectors::scratch_bytes(g))));
  }
  static void block(const Int4& g, Range m, Range n, void* scratch) {
    if (!g.tame_scales || !Reals<W>::block(g, m, n, scratch)) Vectors::block(g, m, n, scratch);
  }
};

}  // namespace

// clang-format off
#define QK_BF16_ROW(W, w)                                                                                             \
  {"weight_only_bf16" w "f32_32x32_x86_amxbf16", "bf16" w "f32", "x86_amxbf16", true, true, true, W::kSigned, W::kBits,     \
   2 * kTileRows, kPair, kMinM, kGops, kCallUs, kGbS, Bf16<W>::scratch_bytes, Bf16<W>::block}
#define QK_F32_ROW(W, w)                                                                                              \
  {"weight_only_f32" w "f32_32x32_x86_amxbf16", "f32" w "f32", "x86_amxbf16", true, true, true, W::kSigned, W::kBits,       \
   2 * kTileRows, kPair, kMinM, kFloatGops, kCallUs, kFloatGbS, Float32<W>::scratch_bytes, Float32<W>::block}
static const Int4Row int4_rows[] = {
    QK_BF16_ROW(U4, "u4"), QK_BF16_ROW(U2, "u2"), QK_BF16_ROW(U8, "u8"), QK_BF16_ROW(S8, "s8"),
    QK_F32_ROW(U4, "u4"),  QK_F32_ROW(U2, "u2"),  QK_F32_ROW(U8, "u8"),  QK_F32_ROW(S8, "s8")};
// clang-format on
const Int4List int4_list = {int4_rows, 8};

}  // namespace x86_amxbf16
}  // namespace qk
