// The host's half of the seam: launching a kernel, clearing memory, describing a matrix to the TMA unit. Under nvcc the
// CUDA runtime; else the emulator. Nothing here waits for the device.
#pragma once
#include <stdexcept>
#include <string>

#include "calls.h"
#include "ptx.h"

namespace qk {

using cuda::Stream;

struct Shape {
  int grid_x = 1, grid_y = 1, grid_z = 1;
  int threads = 128;
  int cluster = 1;  // CTAs along x
  int shared_bytes = 0;
};

#if defined(__CUDACC__)

// What CUDA says becomes an exception that names the cause, and is taken out of CUDA's memory of the last error.
inline void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(doing) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) +
                           ")");
}

template <class Args>
void launch(void (*kernel)(const Args), const Shape& shape, Stream stream, const Args& args, const char* name) {
  if (shape.shared_bytes > 48 << 10)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shape.shared_bytes),
          name);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.grid_x, shape.grid_y, shape.grid_z);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = shape.cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args), name);
}

inline void clear(void* memory, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "clearing an array");
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "asking for a device attribute");
  return value;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// The driver's own entry point, asked for at run time: the module does not link to libcuda, and loads without it.
inline TensorMap matrix_map(const uint8_t* base, int64_t rows, int64_t columns, int64_t pitch, int box_rows) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static Encode encode = nullptr;
  if (!encode) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
          "asking the driver for cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess)
      throw std::runtime_error("the driver is too old: it has no cuTensorMapEncodeTiled (CUDA 12.0)");
    encode = reinterpret_cast<Encode>(found);
  }
  TensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t pitches[1] = {static_cast<cuuint64_t>(pitch)};
  const cuuint32_t box[2] = {128, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<uint8_t*>(base), sizes, pitches,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled refuses a matrix (CUresult " + std::to_string(status) + ")");
  return map;
}

#else

template <class Args>
void launch(void (*kernel)(const Args), const Shape& shape, Stream, const Args& args, const char*) {
  emulator::launch({shape.grid_x, shape.grid_y, shape.grid_z}, shape.threads, shape.cluster, shape.shared_bytes,
                   [kernel, &args] { kernel(args); });
}

inline void clear(void* memory, size_t bytes, Stream) {
  emulator::check_global(memory, bytes, true, "memset");
  memset(memory, 0, bytes);
}

inline int multiprocessors() { return 3; }  // few, so that persistent CTAs go round

inline TensorMap matrix_map(const uint8_t* base, int64_t rows, int64_t columns, int64_t pitch, int box_rows) {
  if (reinterpret_cast<uintptr_t>(base) % 16 != 0 || pitch % 16 != 0 || box_rows < 1 || box_rows > 256)
    throw emulator::Fault("TMA: base and pitch are multiples of 16 bytes, a box has 256 rows at most");
  emulator::check_global(base, (rows - 1) * pitch + columns, false, "a tensor map");
  return {base, rows, columns, pitch, box_rows, 128};
}

#endif

}  // namespace qk
