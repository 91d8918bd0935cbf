// The host's half of the seam against cuda_runtime_stub.cpp: does every failure become an exception that names the cause,
// with nothing left behind? (test_cuda_errors.py)
#include <cstdio>
#include <cstring>

#include "device.cu"

extern cudaError_t fails_with;
extern int driver_version;

struct Nothing {};
static void kernel(const Nothing) {}

template <class Work>
void attempt(const char* name, Work work) {
  try {
    work();
    printf("%s: nothing raised", name);
  } catch (const std::exception& error) {
    printf("%s: %s", name, error.what());
  }
  printf(" | left behind %d\n", int(cudaGetLastError()));
}

int main() {
  using namespace qk;
  Shape large;
  large.shared_bytes = 100 << 10;
  for (cudaError_t error : {cudaErrorInsufficientDriver, cudaErrorMemoryAllocation}) {
    fails_with = error;
    driver_version = error == cudaErrorInsufficientDriver ? 11040 : 13000;
    attempt("devices", [] { throw std::runtime_error(cuda::devices().missing); });
    attempt("architecture", [] { cuda::architecture(0); });
    attempt("device", [] { cuda::OnDevice there(1); });
    attempt("clear", [] { clear(nullptr, 4, nullptr); });
    attempt("launch", [] { launch(kernel, Shape(), nullptr, Nothing(), "a kernel"); });
    attempt("shared", [&] { launch(kernel, large, nullptr, Nothing(), "a large kernel"); });
  }
  fails_with = cudaSuccess;
  attempt("map", [] { matrix_map(nullptr, 1, 1, 16, 1); });
  attempt("works", [] { launch(kernel, Shape(), nullptr, Nothing(), "a kernel"); });
}
