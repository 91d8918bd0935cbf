// As cuda_trial.cpp, of convolutions: a random image and random filters against six plain loops.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern int qk_mutant;
int qk_mutant = 0;

#include FAMILY

using namespace qk;
using namespace qk::cuda;

namespace {

struct Trial {
  int depth, groups;  // channels of a group
  void (*run)(const Conv&, Stream);
};

const Trial kTrials[] = {
    {32, 2, [](const Conv& c, Stream s) { launch_conv_of<Wide80, true>(c, s, "wide"); }},
    {37, 2, [](const Conv& c, Stream s) { launch_conv_of<Narrow80, false>(c, s, "bytes"); }},
};

std::vector<void*> rooms;
uint8_t* room(std::mt19937& random, int64_t bytes, bool writeable = false) {
  bytes = (bytes + 15) / 16 * 16;
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(16, bytes));
  for (int64_t i = 0; i < bytes; ++i) memory[i] = uint8_t(random());
  rooms.push_back(memory);
  emulator::machine.regions.push_back({memory, memory + bytes, writeable});
  return memory;
}

}  // namespace

extern "C" int trial(int which, int m, int n, int, int, unsigned seed, char* message, long* conflicts) {
  const Trial& kind = kTrials[which];
  std::mt19937 random(seed);
  emulator::machine.regions.clear();
  emulator::machine.counters = {};
  emulator::machine.seed = seed;
  for (void* memory : rooms) std::free(memory);
  rooms.clear();
  Conv c = {};
  Image& i = c.image;
  i.batch = 1 + seed % 2, i.height = 6 + m % 7, i.width = 7 + seed % 5, i.channels = kind.depth * kind.groups;
  i.groups = kind.groups, i.filters = kind.groups * (20 + n % 50), i.kernel_h = 3, i.kernel_w = 1 + seed % 3;
  i.stride_h = 1 + seed % 2, i.stride_w = 1, i.dilation_h = 1, i.dilation_w = 1 + seed / 2 % 2;
  i.before_h = 1, i.before_w = seed % 2;
  i.out_h = (i.height + 1) / i.stride_h - 1;
  i.out_w = i.width + i.before_w - i.dilation_w * (i.kernel_w - 1) + 1;  // one column beyond the image
  const int k = i.kernel_h * i.kernel_w * kind.depth, pixels = i.batch * i.out_h * i.out_w;
  c.x = room(random, int64_t(i.batch) * i.height * i.width * i.channels);
  c.w_pitch = (k + 15) / 16 * 16;
  c.w = room(random, i.filters * c.w_pitch);
  uint8_t* pad = room(random, 16);
  for (int b = 0; b < 16; ++b) pad[b] = 101;
  c.pad = pad, c.x_signed = false, c.w_signed = true;
  auto* out = reinterpret_cast<int32_t*>(room(random, int64_t(pixels) * i.filters * 4, true));
  Epilogue& e = c.epilogue;
  e.m = pixels, e.n = i.filters, e.k = k, e.output = kS32, e.out = out, e.out_row = i.filters;
  int result = 0;
  try {
    kind.run(c, nullptr);
    for (int p = 0; p < pixels; ++p)
      for (int f = 0; f < i.filters; ++f) {
        const int group = f / (i.filters / i.groups), image = p / (i.out_h * i.out_w);
        int32_t sum = 0;
        for (int at = 0; at < k; ++at) {
          const int tap = at / kind.depth;
          const int y = p / i.out_w % i.out_h * i.stride_h - i.before_h + tap / i.kernel_w * i.dilation_h;
          const int x = p % i.out_w * i.stride_w - i.before_w + tap % i.kernel_w * i.dilation_w;
          const bool inside = y >= 0 && y < i.height && x >= 0 && x < i.width;
          const int64_t place = ((int64_t(image) * i.height + y) * i.width + x) * i.channels;
          sum += (inside ? c.x[place + group * kind.depth + at % kind.depth] : 101) * int8_t(c.w[f * c.w_pitch + at]);
        }
        if (sum != out[int64_t(p) * i.filters + f]) result = 1;
      }
  } catch (const std::exception& error) {
    snprintf(message, 400, "%s", error.what());
    result = 2;
  }
  *conflicts = 0;
  for (const char* loop : {"ldmatrix", "cp.async", "st.shared.16"})
    *conflicts += emulator::machine.counters.conflicts[loop];
  return result;
}

extern "C" void plant(int mutant) { qk_mutant = mutant; }
