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
void use_device(int device);   // that launches of this thread go to

}  // namespace qk::cuda
