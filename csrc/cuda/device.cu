#include "device.h"

#include "launch.h"

namespace qk::cuda {

Devices devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();  // nobody else shall meet this error
  if (status == cudaSuccess && count > 0) return {count, ""};
  int driver = 0;
  cudaDriverGetVersion(&driver);
  cudaGetLastError();
  if (driver == 0) return {0, "no CUDA device: no NVIDIA driver is loaded"};
  if (status == cudaErrorInsufficientDriver)
    return {0, "no CUDA device that this build can use: the driver is for CUDA " + std::to_string(driver / 1000) + "." +
                   std::to_string(driver % 1000 / 10) + ", this build needs " + std::to_string(CUDART_VERSION / 1000) +
                   "." + std::to_string(CUDART_VERSION % 1000 / 10)};
  return {0, std::string("no CUDA device: ") + cudaGetErrorString(status)};
}

int architecture(int device) {
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for a device attribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for a device attribute");
  return 10 * major + minor;
}

OnDevice::OnDevice(int device) {
  check(cudaGetDevice(&before), "asking for the device");
  check(cudaSetDevice(device), "choosing the device");
}
OnDevice::~OnDevice() { cudaSetDevice(before); }

}  // namespace qk::cuda
