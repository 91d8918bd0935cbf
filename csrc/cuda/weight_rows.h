// The list of products with packed weights of this build, and one product on one of them.
#pragma once
#include "weights.h"

namespace qk::cuda {

struct WeightRow {
  const char* tile;  // rows × columns of the result
  const char* isa;
  const char* kind;  // of x. "floats": any real ones, sums as good as float32; "halves": f16 and bf16, as good as
                     // bfloat16 (A11); "codes": int8, exact (A10)
  int rows, columns;
  int deep;  // parts of k that a CTA takes by itself; 0: all of k, whatever it is
  int first_arch, last_arch;
  void (*run)(const WeightProduct&, Stream);
};

void halves_8(const WeightProduct&, Stream);
void halves_16(const WeightProduct&, Stream);
void halves_32(const WeightProduct&, Stream);
void halves_64(const WeightProduct&, Stream);
void codes_16(const WeightProduct&, Stream);
void codes_32(const WeightProduct&, Stream);
void codes_128(const WeightProduct&, Stream);
void any_floats(const WeightProduct&, Stream);
void add_float_parts(const WeightProduct&, Stream);

struct WeightRowList {
  const WeightRow* rows;
  int count;
};
WeightRowList weight_rows();

// Bytes of scratch that run_weights needs.
int64_t weight_workspace(const WeightRow& row, const WeightProduct& p);

void run_weights(const WeightRow& row, WeightProduct p, void* workspace, Stream stream);

}  // namespace qk::cuda
