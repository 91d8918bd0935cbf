// As cuda_trial.cpp, of convolutions: a random image and random filters against six plain loops.
#include "cuda_room.h"

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

}  // namespace

extern "C" int trial(int which, int m, int n, int, int, unsigned seed, char* message, long* conflicts) {
  const Trial& kind = kTrials[which];
  std::mt19937 random(seed);
  lab::begin(seed);
  Conv c = {};
  Image& i = c.image;
  i.batch = 1 + seed % 2, i.height = 6 + m % 7, i.width = 7 + seed % 5, i.channels = kind.depth * kind.groups;
  i.groups = kind.groups, i.filters = kind.groups * (20 + n % 50), i.kernel_h = 3, i.kernel_w = 1 + seed % 3;
  i.stride_h = 1 + seed % 2, i.stride_w = 1, i.dilation_h = 1, i.dilation_w = 1 + seed / 2 % 2;
  i.before_h = 1, i.before_w = seed % 2;
  i.out_h = (i.height + 1) / i.stride_h - 1;
  i.out_w = i.width + i.before_w - i.dilation_w * (i.kernel_w - 1) + 1;  // one column beyond the image
  const int k = i.kernel_h * i.kernel_w * kind.depth, pixels = i.batch * i.out_h * i.out_w;
  c.x = lab::random_room<uint8_t>(random, int64_t(i.batch) * i.height * i.width * i.channels);
  c.w_pitch = (k + 15) / 16 * 16;
  c.w = lab::random_room<uint8_t>(random, i.filters * c.w_pitch);
  auto* pad = lab::room<uint8_t>(16);
  for (int b = 0; b < 16; ++b) pad[b] = 101;
  c.pad = pad, c.x_signed = false, c.w_signed = true;
  auto* out = lab::room<int32_t>(int64_t(pixels) * i.filters, true);
  Epilogue& e = c.epilogue;
  e.m = pixels, e.n = i.filters, e.k = k, e.output = kS32, e.out = out, e.out_row = i.filters;
  const int result = lab::verdict(message, [&] {
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
        if (sum != out[int64_t(p) * i.filters + f]) return false;
      }
    return true;
  });
  *conflicts = lab::conflicts_of({"ldmatrix", "cp.async", "st.shared.16"});
  return result;
}
