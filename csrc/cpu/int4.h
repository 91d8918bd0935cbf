// The nouns of products with weights of 4 and 2 bits, and of 8 with groups along k: plain structs, no std. Every ISA file
// may include it.
//
//   out[i, j] = Σ_k (a[i, k] − za_i) (w[k, j] − z[g, j])      weighed by group g of k as `sum` says     (A2, A10)
//
// Weights are unsigned codes (signed ones have 8, or 2, added, and so have their zero points) in layout n16k4 at `bits`
// bits (docs/layouts.md): 8/bits k-groups share a byte, so a line of 64 bytes holds 16 columns × 32/bits k. Codes of 8
// bits lie as they are, signed or not (n16k4 itself); kernels see them, and their zero points, with 128 added to signed
// ones.
#pragma once
#include "../kernel.h"

namespace qk {

constexpr idx kUnit = 16;  // a group is a multiple of so many k: what the inner loops take at a time

// What a weight's codes are, as a parameter of kernels.
struct U2 {
  static constexpr int kBits = 2;
  static constexpr bool kSigned = false;
};
struct U4 {
  static constexpr int kBits = 4;
  static constexpr bool kSigned = false;
};
struct U8 {
  static constexpr int kBits = 8;
  static constexpr bool kSigned = false;
};
struct S8 {
  static constexpr int kBits = 8;
  static constexpr bool kSigned = true;
};

enum ScaleType { kScaleF32, kScaleF16, kScaleBf16 };

struct Int4 {
  idx m, n, k;
  const float* x;    // (m, k), adjacent: of rows that take real numbers as they are (A11)
  const uint8_t* a;  // else; any strides
  idx a_row, a_col;
  const uint8_t* w;  // panel p begins at w + p * w_panel
  idx w_panel;
  idx group;  // k of a group, a multiple of kUnit; the last may be short
  // Of every group, 16 columns side by side, panel by panel: [panel][group][16]
  const void* scales;      // float sums only: fma in the order of the groups
  ScaleType scale_type;    // of them
  const uint8_t* factors;  // integer sums: 1 … 16 (two-level scales), or null: 1
  const uint8_t* zeros;    // codes, or null: all are `zero`
  int zero;
  const int32_t* w_sums;     // Σ (w − z) of the group; read only where a_zero is given
  const int32_t* a_zero;     // m values, or null: zero
  bool fits_int8;            // all (w − z) · factor do
  bool tame_scales;          // all scales are 2⁻⁵⁰ … 2²² (amx_reals.h)
  const Epilogue* epilogue;  // what becomes of the sums (epilogue.h)
  idx l1_bytes, l2_bytes;

  idx groups() const { return ceil_div(k, group); }
  idx k_whole() const { return padded(k, kPackedK); }
};

struct Int4Row {
  const char* name;
  const char* types;  // activation, weight, accumulator: float32 where groups are scaled, int32 else
  const char* isa;
  bool a_signed, float_sums, of_floats;
  bool w_signed;  // in memory: of 8 bits only
  int bits;
  idx mr, nr;
  idx min_m;             // declines fewer rows
  double gops, call_us;  // nominal, of one core
  double gb_s;           // nominal: weights read in a second by one core, at few rows
  size_t (*scratch_bytes)(const Int4&);
  // The block out[m, n] on the calling thread; n.begin is a multiple of nr.
  void (*block)(const Int4&, Range m, Range n, void* scratch);
};

struct Int4List {
  const Int4Row* rows;
  int count;
};

Int4List all_int4_rows();                                 // int4.cpp: every one of this build
double int4_us(const Int4Row& row, idx m, idx n, idx k);  // estimated

// x: float32 (m, k), adjacent, quantized on the way (A8), or null where g.a holds codes. Of x, g.a and e.a_scale are
// not looked at. False when memory for the scratch could not be had; out may then be partly written.
bool run_int4(const Int4Row& row, const Int4& g, const Epilogue& e, const float* x, int threads, bool forced);

}  // namespace qk
