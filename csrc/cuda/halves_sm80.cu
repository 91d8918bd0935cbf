#include "halves_sm80.h"

#include "weight_rows.h"

namespace qk::cuda {

void halves_8(const WeightProduct& p, Stream stream) { launch_halves<Halves8>(p, stream, "halves_8x128_sm80"); }
void halves_16(const WeightProduct& p, Stream stream) { launch_halves<Halves16>(p, stream, "halves_16x128_sm80"); }
void halves_32(const WeightProduct& p, Stream stream) { launch_halves<Halves32>(p, stream, "halves_32x128_sm80"); }
void halves_64(const WeightProduct& p, Stream stream) { launch_halves<Halves64>(p, stream, "halves_64x256_sm80"); }

}  // namespace qk::cuda
