#include "gemm_sm80.h"

#include "rows.h"

namespace qk::cuda {

void large_sm80(const Gemm& g, const Epilogue& e, Stream stream) {
  launch_sm80<Large80>(g, e, stream, "gemm_128x128_sm80");
}
void small_sm80(const Gemm& g, const Epilogue& e, Stream stream) {
  launch_sm80<Small80>(g, e, stream, "gemm_16x128_sm80");
}

}  // namespace qk::cuda
