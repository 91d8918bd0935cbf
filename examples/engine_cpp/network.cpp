#include "network.h"

#include <algorithm>
#include <fstream>
#include <stdexcept>

namespace {

char words[300];  // the constructor's; `run` has its own

void check(int32_t status, const char* message) {
  if (status != QK_OK) throw std::runtime_error(std::string(qk_status_name(status)) + ": " + message);
}

class File {
 public:
  explicit File(const std::string& path) : in_(path, std::ios::binary) {
    if (!in_) throw std::runtime_error("cannot open " + path);
  }
  int64_t number() {
    int64_t value = 0;
    read(&value, sizeof value);
    return value;
  }
  template <class T>
  std::vector<T> array(int64_t count) {
    if (count < 0 || count > (int64_t(1) << 32)) throw std::runtime_error("the model has an array of an absurd size");
    std::vector<T> values(static_cast<size_t>(count));
    read(values.data(), sizeof(T) * values.size());
    return values;
  }

 private:
  void read(void* to, size_t bytes) {
    in_.read(static_cast<char*>(to), std::streamsize(bytes));
    if (!in_) throw std::runtime_error("the model is truncated");
  }
  std::ifstream in_;
};

// Room for packed weights within `room`, 64-byte aligned.
void* aligned(std::vector<uint8_t>& room, size_t bytes) {
  room.resize(bytes + 63);
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
}

int32_t choose(const char* op, int64_t m, int64_t n, int64_t k, const char* layout, const qk_conv_shape* shape) {
  qk_problem problem = {};
  problem.size = sizeof problem;
  problem.op = op, problem.types = "u8s8s32", problem.m = m, problem.n = n, problem.k = k;
  problem.layout = layout, problem.conv = shape;
  int32_t kernel = 0;
  check(qk_choose(&problem, &kernel, words, sizeof words), words);
  return kernel;
}

void read_linear(File& file, Layer& layer) {
  layer.m = file.number(), layer.n = file.number(), layer.k = file.number();
  const std::vector<int8_t> weights = file.array<int8_t>(layer.n * layer.k);
  size_t bytes = 0;
  check(qk_pack_bytes(layer.k, layer.n, &bytes, words, sizeof words), words);
  layer.matrix.size = sizeof layer.matrix;
  check(qk_pack(layer.k, layer.n, QK_S8, weights.data(), 1, layer.k, aligned(layer.room, bytes), bytes, &layer.matrix,
                words, sizeof words),
        words);
  layer.in = layer.m * layer.k, layer.out = layer.m * layer.n;
  layer.kernel = choose("linear", layer.m, layer.n, layer.k, "n16k4", nullptr);
}

void read_conv(File& file, Layer& layer) {
  qk_conv_shape& s = layer.shape;
  s.batch = file.number();
  for (int64_t& size : s.size) size = file.number();
  s.channels = file.number(), s.filters = file.number();
  for (int64_t* values : {s.kernel, s.stride, s.dilation, s.before, s.out})
    for (int axis = 0; axis < 3; ++axis) values[axis] = file.number();
  s.groups = file.number();
  if (s.groups < 1) throw std::runtime_error("the model has a convolution without groups");
  const int64_t k = s.kernel[0] * s.kernel[1] * s.kernel[2] * (s.channels / s.groups);
  const std::vector<int8_t> weights = file.array<int8_t>(s.filters * k);
  size_t bytes = 0;
  check(qk_conv_pack_bytes(&s, &bytes, words, sizeof words), words);
  layer.filters.size = sizeof layer.filters;
  check(qk_conv_pack(&s, QK_S8, weights.data(), nullptr, aligned(layer.room, bytes), bytes, &layer.filters, words,
                     sizeof words),
        words);
  layer.n = s.filters, layer.m = s.batch * s.out[0] * s.out[1] * s.out[2];
  layer.in = s.batch * s.size[0] * s.size[1] * s.size[2] * s.channels, layer.out = layer.m * layer.n;
  layer.kernel = choose("conv", layer.m, layer.n, k, layer.filters.depthwise ? "c4t4" : "n16k4", &s);
}

qk_epilogue epilogue_of(const Layer& layer, uint8_t* to) {
  qk_epilogue e = {};
  e.size = sizeof e, e.type = QK_U8, e.rounding = QK_HALF_EVEN, e.residual_type = QK_NO_RESIDUAL;
  e.out = to, e.bias = layer.bias.data(), e.m = layer.multiplier.data();
  e.zero = layer.zero, e.low = layer.low, e.high = layer.high;
  return e;
}

struct WorkspaceOf {
  int32_t tasks;
  size_t& most;
  void operator()(const qk_linear_args& args) const {
    size_t bytes = 0;
    check(qk_linear_workspace(&args, tasks, &bytes, words, sizeof words), words);
    most = std::max(most, bytes);
  }
  void operator()(const qk_conv_args& args) const {
    size_t bytes = 0;
    check(qk_conv_workspace(&args, tasks, &bytes, words, sizeof words), words);
    most = std::max(most, bytes);
  }
};

struct RunOn {
  const qk_host& host;
  void operator()(const qk_linear_args& args) const {
    char message[300];
    check(qk_linear(&args, &host, message, sizeof message), message);
  }
  void operator()(const qk_conv_args& args) const {
    char message[300];
    check(qk_conv(&args, &host, message, sizeof message), message);
  }
};

}  // namespace

template <class Work>
void Network::with_arguments(const Layer& layer, const uint8_t* from, uint8_t* to, const Work& work) {
  const qk_epilogue epilogue = epilogue_of(layer, to);
  if (layer.is_conv) {
    qk_conv_args args = {};
    args.size = sizeof args, args.kernel = layer.kernel, args.x_type = QK_U8, args.shape = &layer.shape;
    args.x = from, args.x_zero = layer.x_zero, args.w = &layer.filters, args.epilogue = &epilogue;
    return work(args);
  }
  qk_linear_args args = {};
  args.size = sizeof args, args.kernel = layer.kernel, args.a_type = QK_U8, args.m = layer.m;
  args.a = from, args.a_row = layer.k, args.a_column = 1, args.w = &layer.matrix;
  args.a_zero = layer.x_zeros.data(), args.epilogue = &epilogue;
  work(args);
}

Network::Network(const std::string& path, int threads) : pool_(threads) {
  File file(path);
  layers_.resize(size_t(file.array<int64_t>(1)[0]));
  if (layers_.empty() || layers_.size() > 1000) throw std::runtime_error("the model has no layers, or absurdly many");
  int64_t most = 0;
  for (Layer& layer : layers_) {
    layer.is_conv = file.number() != 0;
    layer.x_zero = int32_t(file.number()), layer.zero = int32_t(file.number());
    layer.low = int32_t(file.number()), layer.high = int32_t(file.number());
    if (layer.is_conv) read_conv(file, layer);
    else read_linear(file, layer);
    layer.bias = file.array<int32_t>(layer.n), layer.multiplier = file.array<float>(layer.n);
    layer.x_zeros.assign(size_t(layer.m), layer.x_zero);
    most = std::max({most, layer.in, layer.out});
  }
  for (size_t i = 1; i < layers_.size(); ++i)
    if (layers_[i].in != layers_[i - 1].out) throw std::runtime_error("the model's layers do not fit one another");
  for (std::vector<uint8_t>& codes : codes_) codes.resize(size_t(most));
  size_t workspace = 0;
  for (const Layer& layer : layers_)
    with_arguments(layer, codes_[0].data(), codes_[1].data(), WorkspaceOf{pool_.threads(), workspace});
  workspace_.resize(workspace);
}

void Network::run(const uint8_t* input, uint8_t* output) {
  qk_host host = {};
  host.size = sizeof host, host.tasks = pool_.threads(), host.parallel_for = Pool::parallel_for, host.pool = &pool_;
  host.workspace = workspace_.data(), host.workspace_bytes = workspace_.size();
  const uint8_t* from = input;
  for (size_t i = 0; i < layers_.size(); ++i) {
    uint8_t* const to = i + 1 == layers_.size() ? output : codes_[i % 2].data();
    with_arguments(layers_[i], from, to, RunOn{host});
    from = to;
  }
}

void Network::describe(FILE* to) const {
  for (const Layer& layer : layers_) {
    qk_kernel_info info = {};
    info.size = sizeof info;
    if (qk_kernel(layer.kernel, &info, nullptr, 0) == QK_OK)
      fprintf(to, "%-6s %lld → %lld codes on %s\n", layer.is_conv ? "conv" : "linear", (long long)layer.in,
              (long long)layer.out, info.name);
  }
}
