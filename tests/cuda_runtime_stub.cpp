// A CUDA runtime that fails as it is told, and remembers its last error as CUDA's own does.
#include <cuda_runtime_api.h>

extern cudaError_t fails_with;
extern int driver_version;
cudaError_t fails_with = cudaSuccess;
int driver_version = 13000;
static cudaError_t last = cudaSuccess;

static cudaError_t answer() {
  if (fails_with != cudaSuccess) last = fails_with;
  return fails_with;
}

extern "C" {
cudaError_t cudaGetLastError() {
  const cudaError_t was = last;
  last = cudaSuccess;
  return was;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = fails_with == cudaSuccess ? 2 : 0;
  return answer();
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "CUDA driver version is insufficient";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorInsufficientDriver";
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 9;
  return answer();
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return answer();
}
cudaError_t cudaSetDevice(int) { return answer(); }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return answer(); }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return answer(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return answer(); }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *found = nullptr;
  *result = cudaDriverEntryPointSymbolNotFound;
  return answer();
}

// What nvcc calls at the program's start and end.
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
}
