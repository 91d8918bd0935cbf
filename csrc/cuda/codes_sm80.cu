#include "codes_sm80.h"

#include "weight_rows.h"

namespace qk::cuda {

void codes_16(const WeightProduct& p, Stream stream) { launch_codes<Codes16>(p, stream, "codes_16x128_sm80"); }
void codes_32(const WeightProduct& p, Stream stream) { launch_codes<Codes32>(p, stream, "codes_32x256_sm80"); }
void codes_128(const WeightProduct& p, Stream stream) { launch_codes<Codes128>(p, stream, "codes_128x128_sm80"); }

}  // namespace qk::cuda
