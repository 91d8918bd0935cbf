/* qkernels in C: exact integer kernels for inference engines. What is computed: docs/arithmetic.md; how to: docs/c_api.md.
 *
 * - Every function returns a status. What went wrong, in words, goes to the caller's `message` (NUL terminated, cut where
 *   it does not fit; NULL, 0: not wanted). There is no state between calls, all functions may run at the same time.
 * - Memory is the caller's. A qk_host brings the workspace that `…_workspace` asks for, and threads through
 *   `parallel_for`; without one a call computes on the calling thread. Nothing is allocated, no thread is started and
 *   nothing is thrown, unless QK_OWN_SCRATCH or QK_OWN_THREADS asks for it.
 * - A struct begins with its own size: set it to sizeof. A program compiled with an older header passes a smaller one;
 *   with a newer header a larger one, which is taken where all that this library does not know is zero.
 * - Results are the same bits for every kernel, number of tasks and split into ranges.
 * - Codes and weights have one byte an element. Sizes and strides are in elements, sizes below 2^31. Outputs overlap no
 *   input. Sums wrap modulo 2^32: k <= 33025 cannot.
 */
#ifndef QKERNELS_H
#define QKERNELS_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(QKERNELS_BUILD)
#define QK_API __attribute__((visibility("default")))
#else
#define QK_API
#endif

#define QK_VERSION 100           /* of this header: major * 10000 + minor * 100 + patch */
QK_API int32_t qk_version(void); /* of the library */

/* statuses */
enum {
  QK_OK = 0,
  QK_BAD_STRUCT = 1,      /* a struct's size is of no version that this library knows */
  QK_NULL_POINTER = 2,    /* where something must be */
  QK_BAD_ARGUMENT = 3,    /* a size, a type, a range … */
  QK_NO_KERNEL = 4,       /* the kernel does not exist, declines, or cannot run on this CPU */
  QK_SMALL_WORKSPACE = 5, /* the message says how much is missing */
  QK_NO_MEMORY = 6        /* QK_OWN_SCRATCH only; the output may be partly written */
};
QK_API const char* qk_status_name(int32_t status);

/* types of elements */
enum { QK_S32 = 0, QK_F32 = 1, QK_F16 = 2, QK_BF16 = 3, QK_S8 = 4, QK_U8 = 5, QK_S16 = 6, QK_U16 = 7 };

enum { QK_NO_CURVE, QK_GELU, QK_GELU_TANH, QK_SILU, QK_HARDSWISH, QK_SIGMOID, QK_TANH }; /* activations */
enum { QK_HALF_EVEN, QK_GEMMLOWP, QK_RUY, QK_HALF_UP, QK_HALF_AWAY };                    /* roundings (A5) */
enum { QK_NO_RESIDUAL = -1 };                                                            /* else QK_F32, QK_S8, QK_U8 */
enum { QK_OWN_SCRATCH = 1, QK_OWN_THREADS = 2 };                                         /* qk_host.flags */
enum { QK_ANY_KERNEL = -1 }; /* the cheapest that this CPU runs, chosen anew by each call */

/* ---- where a call takes memory and threads from -------------------------------------------------------------------- */

typedef void (*qk_task)(void* context, int32_t index);
/* Calls task(context, i) once for each 0 <= i < tasks, on whatever threads, and returns when all have returned. */
typedef void (*qk_parallel_for)(void* pool, int32_t tasks, qk_task task, void* context);

typedef struct qk_host {
  size_t size;
  uint32_t flags; /* QK_OWN_SCRATCH: buffers that the library keeps for each thread, in place of `workspace`.
                     QK_OWN_THREADS: the library's own pool of threads, in place of `parallel_for`. */
  int32_t tasks;  /* into so many pieces a call is cut; 0, 1: one */
  qk_parallel_for parallel_for; /* NULL: one piece after the other, on the calling thread */
  void* pool;                   /* its first argument */
  void* workspace;              /* of this call alone while it runs; any alignment */
  size_t workspace_bytes;
} qk_host;

/* begin <= i < end; {0, 0}: all */
typedef struct qk_range {
  int64_t begin, end;
} qk_range;

/* ---- which kernels there are, which one runs ------------------------------------------------------------------------ */

/* three spatial axes (depth, height, width); those that are not there have 1 */
typedef struct qk_conv_shape {
  int64_t batch, size[3], channels, filters, kernel[3], stride[3], dilation[3];
  int64_t before[3]; /* zero points before the image; negative where that much of it is left out */
  int64_t out[3], groups;
} qk_conv_shape;

typedef struct qk_kernel_info {
  size_t size;
  char name[64]; /* <op>_<types>_[<tile>_]<isa> */
  char op[24], types[16], isa[24], layout[16];
  int32_t runs_here; /* on this CPU */
} qk_kernel_info;

/* all that a kernel's opinion depends on, beside the CPU */
typedef struct qk_problem {
  size_t size;
  const char* op; /* "gemm" "linear" "weight_only" "conv" "quantize" "dequantize" "dynamic_quantize" "requantize" "add"
                     "mul" "lookup" "softmax" "max_pool" "avg_pool" "channel_sum" "topk" */
  const char* types;  /* activation, weight, accumulator: "u8s8s32", "f32s8s32"; of elementwise ops in, out: "f32s8" */
  int64_t m, n, k;    /* elementwise: rows, columns, 1. conv: output pixels, filters, taps * channels of a group. pools:
                         output pixels, channels, taps. topk: rows of the corpus, queries, dimensions */
  const char* layout; /* of the weights: "n16k4", "c4t4", "n16k4x2/32"; NULL, "": plain */
  const qk_conv_shape* conv; /* of op "conv", else NULL */
} qk_problem;

QK_API int32_t qk_kernel_count(void);
QK_API int32_t qk_kernel(int32_t index, qk_kernel_info* info, char* message, size_t message_bytes);
/* One kernel's opinion: QK_OK and its cost in microseconds, or QK_NO_KERNEL and the reason in `message`. */
QK_API int32_t qk_judge(const qk_problem* problem, int32_t kernel, double* microseconds, char* message,
                        size_t message_bytes);
/* The cheapest that runs here; QK_NO_KERNEL where every one declines. */
QK_API int32_t qk_choose(const qk_problem* problem, int32_t* kernel, char* message, size_t message_bytes);

/* ---- weights, packed once into the caller's memory ------------------------------------------------------------------ */

/* filled by qk_pack: plain data, to be kept, copied or moved with `memory` */
typedef struct qk_packed {
  size_t size;
  int64_t k, n;
  int32_t type; /* QK_S8, QK_U8 */
  const void* memory;
} qk_packed;

/* (k, n) weights at weights[k * row + n * column]; memory: qk_pack_bytes, 64-byte aligned. */
QK_API int32_t qk_pack_bytes(int64_t k, int64_t n, size_t* bytes, char* message, size_t message_bytes);
QK_API int32_t qk_pack(int64_t k, int64_t n, int32_t type, const void* weights, int64_t row, int64_t column,
                       void* memory, size_t bytes, qk_packed* packed, char* message, size_t message_bytes);

/* 8-, 4- or 2-bit weights with a scale for each group of k; filled by qk_pack_groups */
typedef struct qk_packed_groups {
  size_t size;
  int64_t k, n, group;
  int32_t bits, zero; /* zero: of all groups where there are no zeros of each */
  int32_t has_zeros, has_sums;
  const void* memory;
  int32_t tame_scales; /* all are 2^-50 ... 2^22: real rows may be multiplied in parts */
} qk_packed_groups;

/* Unsigned codes (signed ones have 128, 8 or 2 added, and so have their zero points), one a byte, at codes[k * row + n *
 * column]; group: k of a group, a multiple of 16, the last may be short. scales (groups, n) adjacent; zeros likewise, or
 * NULL: all are `zero`. sums: not 0 where activations will have zero points. */
QK_API int32_t qk_pack_groups_bytes(int64_t k, int64_t n, int64_t group, int32_t bits, int32_t zeros, int32_t sums,
                                    size_t* bytes, char* message, size_t message_bytes);
QK_API int32_t qk_pack_groups(int64_t k, int64_t n, int64_t group, int32_t bits, const uint8_t* codes, int64_t row,
                              int64_t column, const float* scales, const uint8_t* zeros, int32_t zero, int32_t sums,
                              void* memory, size_t bytes, qk_packed_groups* packed, char* message,
                              size_t message_bytes);

/* filled by qk_conv_pack */
typedef struct qk_packed_conv {
  size_t size;
  int64_t filters, kernel[3], channels, groups;
  int32_t type, depthwise; /* depthwise: layout c4t4, else n16k4 */
  const int32_t* w_zero;   /* as given */
  const void* memory;
} qk_packed_conv;

/* weights (filters, depth, height, width, channels of a group), adjacent; w_zero: of every filter, or NULL: zero; it must
 * live as long as the packed weights. They serve convolutions of any batch, height and width. */
QK_API int32_t qk_conv_pack_bytes(const qk_conv_shape* shape, size_t* bytes, char* message, size_t message_bytes);
QK_API int32_t qk_conv_pack(const qk_conv_shape* shape, int32_t type, const void* weights, const int32_t* w_zero,
                            void* memory, size_t bytes, qk_packed_conv* packed, char* message, size_t message_bytes);

/* ---- products ------------------------------------------------------------------------------------------------------- */

/* out[i, j] = sum over k of (a[i, k] - a_zero[i]) (w[k, j] - w_zero[j])          (A2) */
typedef struct qk_gemm_args {
  size_t size;
  int32_t kernel; /* of op "gemm", or QK_ANY_KERNEL */
  int32_t a_type; /* QK_S8, QK_U8 */
  int64_t m;
  const void* a;
  int64_t a_row, a_column;
  const qk_packed* w;
  int32_t* out;
  int64_t out_row;
  const int32_t* a_zero; /* m values, or NULL: zero */
  const int32_t* w_zero; /* n values, or NULL: zero */
  qk_range rows;         /* of out that this call computes; pointers are those of all */
  qk_range columns;      /* likewise; begins at a multiple of 16 */
} qk_gemm_args;

QK_API int32_t qk_gemm_workspace(const qk_gemm_args* args, int32_t tasks, size_t* bytes, char* message,
                                 size_t message_bytes);
QK_API int32_t qk_gemm(const qk_gemm_args* args, const qk_host* host, char* message, size_t message_bytes);

/* what becomes of sums: row i, column j of an (m, n) result                       (A6) */
typedef struct qk_epilogue {
  size_t size;
  int32_t type; /* QK_S32: sum + bias. QK_F32, QK_F16, QK_BF16: f32(sum + bias) * f32(a_scale * w_scale) + float_bias
                   + residual, activated. Codes (QK_S8 …): clamp(round((sum + bias) * m [+ residual]) + zero) */
  int32_t rounding; /* of codes */
  void* out;
  int64_t out_row;     /* elements between rows; 0: n */
  const int32_t* bias; /* NULL: none */
  int64_t bias_row;    /* between rows of bias; 0: one row for all. Likewise m_row */

  const float* a_scale; /* floats: one, or m where a_scale_step is 1; not read where a is QK_F32 */
  int64_t a_scale_step;
  const float* w_scale;    /* n */
  const float* float_bias; /* n, or NULL */
  int32_t curve;           /* QK_GELU … */
  int32_t clamps;          /* not 0: clamped to clamp_low … clamp_high */
  float clamp_low, clamp_high;

  const float* m;       /* codes, QK_HALF_EVEN: a_scale * w_scale / out_scale, n (or rows of n) */
  const double* m64;    /* QK_HALF_AWAY */
  const int32_t *q, *e; /* the others: q * 2^(e - 31), see qk_multiplier */
  int64_t m_row;
  int32_t zero, low, high; /* of the codes, after every clamp */

  int32_t residual_type; /* QK_NO_RESIDUAL, QK_F32, QK_S8, QK_U8; of codes: QK_HALF_EVEN only */
  const void* residual;  /* (m, n) */
  int64_t residual_row;  /* 0: n */
  float residual_scale;  /* of codes: residual's scale / out_scale */
  int32_t residual_zero;
} qk_epilogue;

/* a gemm and its epilogue; QK_F32 rows are quantized on the way (A8), adjacent */
typedef struct qk_linear_args {
  size_t size;
  int32_t kernel; /* of op "linear", or QK_ANY_KERNEL */
  int32_t a_type; /* QK_S8, QK_U8, QK_F32 */
  int64_t m;
  const void* a;
  int64_t a_row, a_column;
  const qk_packed* w; /* one of the two, the other NULL */
  const qk_packed_groups*
      groups; /* floats come out, f32(sum weighed by scales) * a_scale: no w_scale, no int bias (A10) */
  const int32_t *a_zero, *w_zero; /* w_zero: of w only */
  const qk_epilogue* epilogue;
  qk_range rows, columns; /* as of qk_gemm */
} qk_linear_args;

QK_API int32_t qk_linear_workspace(const qk_linear_args* args, int32_t tasks, size_t* bytes, char* message,
                                   size_t message_bytes);
QK_API int32_t qk_linear(const qk_linear_args* args, const qk_host* host, char* message, size_t message_bytes);

/* Rows of QK_F32 times groups, in real numbers: nothing of `a` is quantized, and there is neither a_zero nor a_scale (A11).
 * kernel: of op "weight_only"; one whose types begin with bf16 rounds `a` to bfloat16, QK_ANY_KERNEL does not. */
QK_API int32_t qk_weight_only_workspace(const qk_linear_args* args, int32_t tasks, size_t* bytes, char* message,
                                        size_t message_bytes);
QK_API int32_t qk_weight_only(const qk_linear_args* args, const qk_host* host, char* message, size_t message_bytes);

/* images (batch, depth, height, width, channels), channels adjacent             (A12) */
typedef struct qk_conv_args {
  size_t size;
  int32_t kernel; /* of op "conv", or QK_ANY_KERNEL */
  int32_t x_type; /* QK_S8, QK_U8 */
  const qk_conv_shape* shape;
  const void* x;
  int64_t x_step[4]; /* elements between images, depths, rows, pixels; all 0: adjacent */
  int32_t x_zero;    /* what taps outside of the image read */
  const qk_packed_conv* w;
  const qk_epilogue* epilogue; /* its rows are the pixels of the result, in order; one scale, one row of everything */
  qk_range lines; /* of batch * out[0] * out[1] lines of the result: whole images, or lines of one flat image */
} qk_conv_args;

QK_API int32_t qk_conv_workspace(const qk_conv_args* args, int32_t tasks, size_t* bytes, char* message,
                                 size_t message_bytes);
QK_API int32_t qk_conv(const qk_conv_args* args, const qk_host* host, char* message, size_t message_bytes);

/* ---- elementwise ---------------------------------------------------------------------------------------------------- */

/* Element i, j of a (rows, columns) array, adjacent, has scale[(i / repeat) % scale_rows][j / group], and zero likewise. */
typedef struct qk_elementwise_args {
  size_t size;
  int32_t kernel;            /* of the function's op, or QK_ANY_KERNEL */
  int32_t in_type, out_type; /* floats are QK_F32; accumulators QK_S32 */
  int64_t rows, columns;
  const void* in;
  void* out;
  int64_t scale_rows, scale_columns, repeat, group; /* repeat, group: at least 1 */
  const float* scale;                               /* quantize, dequantize */
  const int32_t* zero;                              /* of scale's shape, or NULL: zero */
  int32_t low, high;                                /* codes: lowest and highest; dequantize: not read */
  /* requantize, arrays of scale's shape: as of qk_epilogue */
  int32_t rounding;
  const float* m;
  const double* m64;
  const int32_t *q, *e, *bias;
  /* dynamic_quantize writes one for each `group` columns of a row: (rows, ceil(columns / group)); sums or NULL. low < 0:
   * the symmetric rule */
  float* found_scale;
  int32_t *found_zero, *found_sums;
} qk_elementwise_args;

/* They need no workspace. */
QK_API int32_t qk_quantize(const qk_elementwise_args* args, const qk_host* host, char* message, size_t message_bytes);
QK_API int32_t qk_dequantize(const qk_elementwise_args* args, const qk_host* host, char* message, size_t message_bytes);
QK_API int32_t qk_requantize(const qk_elementwise_args* args, const qk_host* host, char* message, size_t message_bytes);
QK_API int32_t qk_dynamic_quantize(const qk_elementwise_args* args, const qk_host* host, char* message,
                                   size_t message_bytes);

/* ---- between products: codes of QK_S8 or QK_U8, one scale an array -------------------------------------------------- */

/* out = a + b, or a * b, in codes of out_scale: `count` adjacent elements, all of one type            (A14) */
typedef struct qk_pair_args {
  size_t size;
  int32_t kernel; /* of op "add", "mul", or QK_ANY_KERNEL */
  int32_t type;
  int64_t count;
  const void *a, *b;
  void* out;
  float a_scale, b_scale, out_scale;
  int32_t a_zero, b_zero, out_zero;
} qk_pair_args;

QK_API int32_t qk_add(const qk_pair_args* args, const qk_host* host, char* message, size_t message_bytes);
QK_API int32_t qk_mul(const qk_pair_args* args, const qk_host* host, char* message, size_t message_bytes);

/* out[i, j] = table[in[i, j]]: any function of a code. Parts of a wider result, as of a concatenation, have strides. (A15) */
typedef struct qk_lookup_args {
  size_t size;
  int32_t kernel; /* of op "lookup", or QK_ANY_KERNEL */
  int32_t type;
  int64_t rows, columns;
  const void* in;
  void* out;
  int64_t in_row, out_row; /* elements between rows; 0: columns */
  const void* table;       /* 256 codes of `type`, that of the lowest first */
} qk_lookup_args;

QK_API int32_t qk_lookup(const qk_lookup_args* args, const qk_host* host, char* message, size_t message_bytes);
/* The table that brings codes of one scale and zero point to another: quantize(dequantize(code)). qk_lookup with it puts
 * a tensor into its place of a concatenation. */
QK_API int32_t qk_rescale_table(int32_t type, float scale, int32_t zero, float out_scale, int32_t out_zero, void* table,
                                char* message, size_t message_bytes);

/* e^x / sum e^x of every row of codes, in codes of out_scale                     (A17) */
typedef struct qk_softmax_args {
  size_t size;
  int32_t kernel; /* of op "softmax", or QK_ANY_KERNEL */
  int32_t type;
  int64_t rows, columns;
  const void* in;
  void* out;
  const float* table; /* 256 values, made once by qk_softmax_table */
  float out_scale;    /* at most 1 */
  int32_t out_zero;
} qk_softmax_args;

QK_API int32_t qk_softmax(const qk_softmax_args* args, const qk_host* host, char* message, size_t message_bytes);
/* Of codes of `scale` in rows of `columns`; e^x and ln are those of the C library. */
QK_API int32_t qk_softmax_table(float scale, int64_t columns, float* table, char* message, size_t message_bytes);

/* The largest code, or the mean, of every window of images (images, height, width, channels)          (A16) */
typedef struct qk_pool_args {
  size_t size;
  int32_t kernel; /* of op "max_pool", "avg_pool", "channel_sum", or QK_ANY_KERNEL */
  int32_t type;
  int64_t images, height, width, channels;
  const void* x;
  int64_t x_step[4]; /* elements between images, rows, pixels, channels; all 0: adjacent, channels last */
  void* out;
  int64_t out_step[4];           /* likewise */
  int64_t out_height, out_width; /* not of qk_global_avg_pool, whose window is the image; nor are the next four */
  int64_t window[2], stride[2];  /* height, width */
  int64_t before[2],
      dilation[2];        /* before: pixels outside of the image above and left of it, fewer than the window has */
  int32_t count_outside;  /* avg_pool: what is outside counts, as 0 */
  float scale, out_scale; /* not of max_pool, nor are zero points */
  int32_t zero, out_zero;
} qk_pool_args;

QK_API int32_t qk_max_pool(const qk_pool_args* args, const qk_host* host, char* message, size_t message_bytes);
QK_API int32_t qk_avg_pool(const qk_pool_args* args, const qk_host* host, char* message, size_t message_bytes);
/* The exact mean of every channel. It alone wants a workspace. */
QK_API int32_t qk_global_avg_pool_workspace(const qk_pool_args* args, int32_t tasks, size_t* bytes, char* message,
                                            size_t message_bytes);
QK_API int32_t qk_global_avg_pool(const qk_pool_args* args, const qk_host* host, char* message, size_t message_bytes);

/* ---- search --------------------------------------------------------------------------------------------------------- */

/* The k best rows of a corpus for each query, best first, of equals the lower index; scores and indices: (queries, k) (A18) */
typedef struct qk_topk_args {
  size_t size;
  int32_t kernel;                  /* of op "topk", or QK_ANY_KERNEL */
  int32_t corpus_type, query_type; /* QK_S8, QK_U8 */
  int32_t distance;                /* 0: sum qc, the largest first; else sum (q - c)^2, the least first, of one type */
  int64_t rows, dims;
  const void* corpus;
  int64_t corpus_row, corpus_column; /* elements between rows, and between the values of a row */
  int64_t queries;
  const void* query;
  int64_t query_row, query_column;
  int64_t k; /* 1 ... rows */
  int32_t* scores;
  int64_t* indices;
} qk_topk_args;

QK_API int32_t qk_topk_workspace(const qk_topk_args* args, int32_t tasks, size_t* bytes, char* message,
                                 size_t message_bytes);
QK_API int32_t qk_topk(const qk_topk_args* args, const qk_host* host, char* message, size_t message_bytes);

/* The fixed-point multiplier q * 2^(e - 31) of a real one, finite and > 0                                        (A4) */
QK_API int32_t qk_multiplier(double real, int32_t* q, int32_t* e, char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif
#endif
