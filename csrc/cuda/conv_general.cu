// What every GPU runs of convolutions.
#include "conv_depthwise.h"
#include "conv_rows.h"

namespace qk::cuda {

void conv_channels(const Conv& c, Stream stream) { launch_depthwise(c, stream); }

}  // namespace qk::cuda
