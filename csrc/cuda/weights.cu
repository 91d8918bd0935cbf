// What every GPU runs of products with packed weights.
#include "add_parts.h"
#include "few_rows.h"
#include "weight_rows.h"

namespace qk::cuda {

void any_floats(const WeightProduct& p, Stream stream) { launch_few_rows(p, stream); }
void add_float_parts(const WeightProduct& p, Stream stream) { launch_add_parts(p, stream); }

}  // namespace qk::cuda
