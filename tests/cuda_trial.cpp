// One product of random operands on one kernel in the emulator, compared with three plain loops. Compiled by
// test_cuda_mutants.py, against the kernels' own sources and against copies with planted bugs: qk_mutant says which bug.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

extern int qk_mutant;
int qk_mutant = 0;

#include FAMILY

using namespace qk;
using namespace qk::cuda;

namespace {

struct Trial {
  bool swapped;
  void (*run)(const Gemm&, const Epilogue&, Stream);
};

#if defined(TRIAL_SM80)
const Trial kTrials[] = {
    {false, [](const Gemm& g, const Epilogue& e, Stream s) { launch_sm80<Large80>(g, e, s, "large"); }},
    {true, [](const Gemm& g, const Epilogue& e, Stream s) { launch_sm80<Small80>(g, e, s, "small"); }},
};
#elif defined(TRIAL_SM90A)
const Trial kTrials[] = {
    {false, [](const Gemm& g, const Epilogue& e, Stream s) { launch_sm90a<Pair90>(g, e, s, "pair"); }},
    {false, [](const Gemm& g, const Epilogue& e, Stream s) { launch_sm90a<Single90>(g, e, s, "single"); }},
    {true, [](const Gemm& g, const Epilogue& e, Stream s) { launch_sm90a<Few90>(g, e, s, "few"); }},
    {true, [](const Gemm& g, const Epilogue& e, Stream s) { launch_sm90a<Least90>(g, e, s, "least"); }},
};
#elif defined(TRIAL_SM75)
const Trial kTrials[] = {{false, [](const Gemm& g, const Epilogue& e, Stream s) { launch_sm75(g, e, s, "large"); }}};
#else
const Trial kTrials[] = {{false, [](const Gemm& g, const Epilogue& e, Stream s) { launch_dp4a(g, e, s, "any"); }}};
#endif

uint8_t* operand(std::mt19937& random, int64_t rows, int64_t pitch) {
  auto* bytes = static_cast<uint8_t*>(std::aligned_alloc(16, rows * pitch));
  for (int64_t i = 0; i < rows * pitch; ++i) bytes[i] = uint8_t(random());  // behind k as well
  emulator::machine.regions.push_back({bytes, bytes + rows * pitch, false});
  return bytes;
}

}  // namespace

// 0 exact, 1 wrong numbers, 2 a fault, whose text is in `message`; and the bank conflicts of the main loop.
extern "C" int trial(int which, int m, int n, int k, int splits, unsigned seed, char* message, long* conflicts) {
  std::mt19937 random(seed);
  const int64_t pitch = (k + 15) / 16 * 16;
  emulator::machine.regions.clear();
  emulator::machine.counters = {};
  emulator::machine.seed = seed;
  uint8_t *a = operand(random, m, pitch), *w = operand(random, n, pitch);
  std::vector<int32_t> out(size_t(m) * n, splits > 1 ? 0 : 0x5A5A5A5A), wanted(out.size());
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      int32_t sum = 0;
      for (int x = 0; x < k; ++x) sum += int8_t(a[i * pitch + x]) * int8_t(w[j * pitch + x]);
      wanted[size_t(i) * n + j] = sum;
    }
  auto* begin = reinterpret_cast<uint8_t*>(out.data());
  emulator::machine.regions.push_back({begin, begin + out.size() * 4, true});
  Epilogue e = {};
  e.m = m, e.n = n, e.k = k, e.output = splits > 1 ? kPartial : kS32, e.out = out.data(), e.out_row = n;
  Gemm g = {1, m, n, k, a, pitch, 0, w, pitch, 0, true, true, splits};
  if (kTrials[which].swapped) std::swap(g.m, g.n), std::swap(g.a, g.w);
  int result = 0;
  try {
    kTrials[which].run(g, e, nullptr);
    result = out == wanted ? 0 : 1;
  } catch (const std::exception& error) {
    snprintf(message, 400, "%s", error.what());
    result = 2;
  }
  *conflicts = 0;
  for (const char* kind : {"ldmatrix", "cp.async", "wgmma", "st.shared.4", "st.shared.16"})
    *conflicts += emulator::machine.counters.conflicts[kind];
  std::free(a);
  std::free(w);
  return result;
}

extern "C" void plant(int mutant) { qk_mutant = mutant; }
