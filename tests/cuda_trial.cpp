// One product of random operands on one kernel in the emulator, compared with three plain loops. Compiled by
// test_cuda_mutants.py, against the kernels' own sources and against copies with planted bugs: qk_mutant says which bug.
#include <utility>

#include "cuda_room.h"

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

}  // namespace

// The verdict, and the bank conflicts of the main loop.
extern "C" int trial(int which, int m, int n, int k, int splits, unsigned seed, char* message, long* conflicts) {
  std::mt19937 random(seed);
  const int64_t pitch = (k + 15) / 16 * 16;
  lab::begin(seed);
  auto *a = lab::random_room<uint8_t>(random, m * pitch), *w = lab::random_room<uint8_t>(random, n * pitch);
  auto* out = lab::room<int32_t>(int64_t(m) * n, true);
  for (int64_t i = 0; i < int64_t(m) * n; ++i) out[i] = splits > 1 ? 0 : 0x5A5A5A5A;
  Epilogue e = {};
  e.m = m, e.n = n, e.k = k, e.output = splits > 1 ? kPartial : kS32, e.out = out, e.out_row = n;
  Gemm g = {1, m, n, k, a, pitch, 0, w, pitch, 0, true, true, splits};
  if (kTrials[which].swapped) std::swap(g.m, g.n), std::swap(g.a, g.w);
  const int result = lab::verdict(message, [&] {
    kTrials[which].run(g, e, nullptr);
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        int32_t sum = 0;
        for (int x = 0; x < k; ++x) sum += int8_t(a[i * pitch + x]) * int8_t(w[j * pitch + x]);
        if (sum != out[int64_t(i) * n + j]) return false;
      }
    return true;
  });
  *conflicts = lab::conflicts_of({"ldmatrix", "cp.async", "wgmma", "st.shared.4", "st.shared.16"});
  return result;
}
