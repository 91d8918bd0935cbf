#include "conv_sm80.h"

#include "conv_rows.h"

namespace qk::cuda {

void conv_wide(const Conv& c, Stream stream) { launch_conv_of<Wide80, true>(c, stream, "conv_128x128_sm80"); }
void conv_narrow(const Conv& c, Stream stream) { launch_conv_of<Narrow80, true>(c, stream, "conv_128x64_sm80"); }
void conv_bytes(const Conv& c, Stream stream) { launch_conv_of<Narrow80, false>(c, stream, "conv_bytes_sm80"); }

}  // namespace qk::cuda
