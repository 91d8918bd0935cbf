// The GPU at hand, and what stands in the way of one. Implemented with the CUDA runtime (device.cu), or for the emulator.
#pragma once
#include <string>

namespace qk::cuda {

struct Devices {
  int count;
  std::string missing;  // why there is none
};

Devices devices();
int architecture(int device);  // 90 for compute capability 9.0

// The device that this thread's launches go to, for as long as it lives.
struct OnDevice {
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  int before = 0;
};

}  // namespace qk::cuda
