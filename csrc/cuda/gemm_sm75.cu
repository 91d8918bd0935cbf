#include "gemm_sm75.h"

#include "rows.h"

namespace qk::cuda {

void large_sm75(const Gemm& g, const Epilogue& e, Stream stream) { launch_sm75(g, e, stream, "gemm_128x128_sm75"); }

}  // namespace qk::cuda
