// The nouns of the C++ side: plain structs, no std, nothing with external linkage. Every ISA file may include it.
//
// Sizes and strides are in elements unless the name says _bytes; activations and weights have one byte an element.
// Accumulators wrap: every sum and product of 32-bit integers is formed in uint32_t (docs/arithmetic.md A0, A2).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace qk {

using idx = ptrdiff_t;

struct Range {
  idx begin, end;
};

static inline idx min_of(idx x, idx y) { return x < y ? x : y; }
static inline idx max_of(idx x, idx y) { return x > y ? x : y; }
static inline idx ceil_div(idx size, idx step) { return (size + step - 1) / step; }
static inline idx padded(idx size, idx multiple) { return ceil_div(size, multiple) * multiple; }

// Layout n16k4 (docs/layouts.md): panels of 16 columns, 4 consecutive k per column.
constexpr idx kPanel = 16;    // columns of a panel
constexpr idx kGroup = 4;     // consecutive k of one column
constexpr idx kPackedK = 64;  // K of a packed matrix is padded to it with zeros
constexpr idx kChunk = 16;    // consecutive k of one row in an A panel of the vector kernels

struct Epilogue;  // epilogue.h

// One product, checked and ready: out[i, j] = Σ_k (a[i, k] − a_zero[i]) (w[k, j] − w_zero[j])  mod 2³².
struct Gemm {
  idx m, n, k;
  const uint8_t* a;  // any strides
  idx a_row, a_col;
  const uint8_t* w;  // n16k4; panel p begins at w + p * w_panel
  idx w_panel;
  bool w_narrow;  // narrow.h; then w_sums are there. False where nobody looked
  const int32_t*
      w_sums;    // of every column, padded to whole panels; unused where the row does not flip and a_zero is null
  int32_t* out;  // unit column stride
  idx out_row;
  bool add;                  // out += the product, instead of =
  const int32_t* a_zero;     // m values, or null: zero
  const int32_t* w_zero;     // n values, or null: zero
  const Epilogue* epilogue;  // what becomes of the sums, instead of out = them; or null
  idx l1_bytes, l2_bytes;    // caches of one core, for blocking
};

// One line of the registry. The signs are part of it: a row reads one pair of types.
struct KernelRow {
  const char* name;
  const char* types;  // activation, weight, accumulator
  const char* isa;
  bool a_signed, w_signed;
  bool needs_sums;  // reads w_sums even without zero points
  idx mr, nr;       // the tile of the micro-kernel
  idx k_step;       // K of packed weights is padded at least to this
  idx min_m;        // declines fewer rows
  double gops;      // nominal rate of one core, 10⁹ operations a second: what its cost is estimated from
  double call_us;   // nominal cost of entering it once
  size_t (*scratch_bytes)(const Gemm&);
  // Computes the block out[m, n] of the product on the calling thread. `scratch` is 64-byte aligned; n.begin is a
  // multiple of nr. Nothing else is written, nothing is allocated.
  void (*block)(const Gemm&, Range m, Range n, void* scratch);
  // Multiplies from registers only, `rounds` times; returns the operations done. The roof that benchmarks quote.
  double (*peak)(idx rounds);
};

struct RowList {
  const KernelRow* rows;
  int count;
};

}  // namespace qk
