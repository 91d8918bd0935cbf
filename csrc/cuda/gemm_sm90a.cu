#include "gemm_sm90a.h"

#include "rows.h"

namespace qk::cuda {

void pair_sm90a(const Gemm& g, const Epilogue& e, Stream stream) {
  launch_sm90a<Pair90>(g, e, stream, "gemm_128x256_sm90a");
}
void single_sm90a(const Gemm& g, const Epilogue& e, Stream stream) {
  launch_sm90a<Single90>(g, e, stream, "gemm_128x128_sm90a");
}
void few_sm90a(const Gemm& g, const Epilogue& e, Stream stream) {
  launch_sm90a<Few90>(g, e, stream, "gemm_64x128_sm90a");
}
void least_sm90a(const Gemm& g, const Epilogue& e, Stream stream) {
  launch_sm90a<Least90>(g, e, stream, "gemm_16x128_sm90a");
}

}  // namespace qk::cuda
