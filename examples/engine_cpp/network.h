// A quantized network: layers of uint8 codes in and out, int8 weights with a scale for each channel.
#pragma once
#include <qkernels.h>

#include <cstdio>
#include <string>
#include <vector>

#include "pool.h"

struct Layer {
  bool is_conv;
  int64_t m, n, k;  // of linear
  qk_conv_shape shape;
  int64_t in, out;  // codes of its input and its output
  int32_t x_zero, zero, low, high;
  std::vector<int32_t> bias, x_zeros;
  std::vector<float> multiplier;
  std::vector<uint8_t> room;  // packed weights, aligned within
  qk_packed matrix;
  qk_packed_conv filters;
  int32_t kernel;  // chosen once
};

// Everything is checked and chosen in the constructor; `run` allocates nothing. Throws std::runtime_error with qkernels'
// own words.
class Network {
 public:
  Network(const std::string& path, int threads);
  void run(const uint8_t* input, uint8_t* output);
  size_t inputs() const { return size_t(layers_.front().in); }
  size_t outputs() const { return size_t(layers_.back().out); }
  void describe(FILE* to) const;

 private:
  template <class Work>
  void with_arguments(const Layer& layer, const uint8_t* from, uint8_t* to, const Work& work);

  Pool pool_;
  std::vector<Layer> layers_;
  std::vector<uint8_t> codes_[2], workspace_;
};
