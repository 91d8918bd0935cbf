// Calls of the C API with a workspace and a parallel_for allocate nothing and start no thread: malloc and pthread_create
// are ours here, and count. With QK_OWN_SCRATCH and QK_OWN_THREADS they do, so that the counting is seen to work.
#include <dlfcn.h>
#include <pthread.h>
#include <qkernels.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" void* __libc_malloc(size_t);
extern "C" void* __libc_calloc(size_t, size_t);
extern "C" void* __libc_memalign(size_t, size_t);
extern "C" void* __libc_realloc(void*, size_t);

namespace { long allocations, threads; }

extern "C" {
void* malloc(size_t bytes) { return ++allocations, __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { return ++allocations, __libc_calloc(count, bytes); }
void* realloc(void* old, size_t bytes) { return ++allocations, __libc_realloc(old, bytes); }
void* aligned_alloc(size_t alignment, size_t bytes) { return ++allocations, __libc_memalign(alignment, bytes); }

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create real = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  ++threads;
  return real(thread, attributes, run, argument);
}
}

namespace {

void one_after_the_other(void*, int32_t tasks, qk_task task, void* context) {
  for (int32_t i = 0; i < tasks; ++i) task(context, i);
}

constexpr int64_t kM = 300, kN = 200, kK = 500;
uint8_t a[kM * kK];
float x[kM * kK], y[kM * kN], scales[kK], found_scale[kM];
int8_t w[kN * kK], codes[kM * kK];
int32_t out[kM * kN], a_zero[kM], found_zero[kM];
alignas(64) uint8_t packed_memory[1 << 18], packed_filters[1 << 18];
alignas(64) uint8_t workspace[8 << 20];
int64_t nearest[20 * 7];
char message[300];

void check(const char* what, int32_t status) {
  if (status == QK_OK) return;
  printf("%s: %s\n", what, message);
  exit(1);
}

void between(const qk_host& host) {
  qk_pair_args sum = {};
  sum.size = sizeof sum, sum.kernel = QK_ANY_KERNEL, sum.type = QK_U8, sum.count = kM * kK;
  sum.a = sum.b = a, sum.out = codes, sum.a_scale = sum.b_scale = sum.out_scale = 1;
  check("add", qk_add(&sum, &host, message, 300));
  qk_pool_args pool = {};
  pool.size = sizeof pool, pool.kernel = QK_ANY_KERNEL, pool.type = QK_U8, pool.images = 1, pool.height = 20;
  pool.width = 15, pool.channels = 40, pool.x = a, pool.out = codes, pool.scale = pool.out_scale = 1;
  check("global_avg_pool", qk_global_avg_pool(&pool, &host, message, 300));
  qk_topk_args search = {};
  search.size = sizeof search, search.kernel = QK_ANY_KERNEL, search.corpus_type = search.query_type = QK_U8;
  search.rows = kM, search.dims = kK, search.corpus = a, search.corpus_row = kK, search.corpus_column = 1;
  search.queries = 20, search.query = a, search.query_row = kK, search.query_column = 1, search.k = 7;
  search.scores = out, search.indices = nearest;
  check("topk", qk_topk(&search, &host, message, 300));
}

// Each of the products, once by each kernel that takes it.
void compute(const qk_host& host) {
  qk_packed matrix = {};
  matrix.size = sizeof matrix;
  check("pack", qk_pack(kK, kN, QK_S8, w, kN, 1, packed_memory, sizeof packed_memory, &matrix, message, 300));
  qk_gemm_args gemm = {};
  gemm.size = sizeof gemm, gemm.kernel = QK_ANY_KERNEL, gemm.a_type = QK_U8, gemm.m = kM, gemm.a = a, gemm.a_row = kK;
  gemm.a_column = 1, gemm.w = &matrix, gemm.out = out, gemm.out_row = kN, gemm.a_zero = a_zero;
  check("gemm", qk_gemm(&gemm, &host, message, 300));
  qk_epilogue e = {};
  e.size = sizeof e, e.type = QK_F32, e.out = y, e.w_scale = scales, e.a_scale = scales;
  e.residual_type = QK_NO_RESIDUAL;
  qk_linear_args linear = {};
  linear.size = sizeof linear, linear.kernel = QK_ANY_KERNEL, linear.a_type = QK_F32, linear.m = kM, linear.a = x;
  linear.a_row = kK, linear.a_column = 1, linear.w = &matrix, linear.epilogue = &e;
  check("linear", qk_linear(&linear, &host, message, 300));
  qk_conv_shape s = {1, {1, 20, 15}, 40, 30, {1, 3, 3}, {1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {1, 20, 15}, 1};
  qk_packed_conv filters = {};
  filters.size = sizeof filters;
  check("pack", qk_conv_pack(&s, QK_S8, w, nullptr, packed_filters, sizeof packed_filters, &filters, message, 300));
  qk_conv_args conv = {};
  conv.size = sizeof conv, conv.kernel = QK_ANY_KERNEL, conv.x_type = QK_U8, conv.shape = &s, conv.x = a;
  conv.x_zero = 3, conv.w = &filters, conv.epilogue = &e;
  check("conv", qk_conv(&conv, &host, message, 300));
  qk_elementwise_args quantize = {};
  quantize.size = sizeof quantize, quantize.kernel = QK_ANY_KERNEL, quantize.in_type = QK_F32;
  quantize.out_type = QK_S8, quantize.rows = kM, quantize.columns = kK, quantize.in = x, quantize.out = codes;
  quantize.group = kK, quantize.low = -127, quantize.high = 127;
  quantize.found_scale = found_scale, quantize.found_zero = found_zero;
  check("dynamic_quantize", qk_dynamic_quantize(&quantize, &host, message, 300));
  between(host);
}

}  // namespace

int main() {
  for (float& scale : scales) scale = 0.5f;
  for (int64_t i = 0; i < kM * kK; ++i) x[i] = float(i % 17), a[i] = uint8_t(i);
  memset(w, 1, sizeof w);
  qk_host host = {};
  host.size = sizeof host, host.tasks = 4, host.parallel_for = one_after_the_other;
  host.workspace = workspace, host.workspace_bytes = sizeof workspace;
  printf("first\n");  // which allocates its buffer
  const long before = allocations;
  compute(host);
  const long hosted = allocations - before, hosted_threads = threads;
  host.flags = QK_OWN_SCRATCH | QK_OWN_THREADS, host.workspace = nullptr, host.workspace_bytes = 0;
  compute(host);
  printf("%ld allocations and %ld threads on the host's memory, %ld and %ld on ours\n", hosted, hosted_threads,
         allocations - before - hosted, threads - hosted_threads);
  return hosted || hosted_threads || allocations - before == hosted || threads == hosted_threads;
}
