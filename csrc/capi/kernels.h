// Every kernel of this build as C sees them, in the order of qkernels/dispatch.py, and their opinions.
#pragma once
#include "../cpu/conv.h"
#include "../cpu/elements.h"
#include "../cpu/int4.h"
#include "../cpu/plan.h"
#include "../cpu/pooling.h"
#include "call.h"

namespace qk::capi {

enum class Kind { gemm, linear, conv, depthwise, elementwise, int4, pool, topk };

struct Entry {
  Kind kind;
  bool also;  // of linear: the row's further types, of real activations
  union {
    const KernelRow* product;
    const DepthwiseRow* depthwise;
    const ElementwiseRow* elementwise;
    const Int4Row* int4;
    const PoolRow* pool;
  };

  const char* isa() const;
  const char* op() const;
  void types(char (&to)[16]) const;
  void name(char (&to)[64]) const;
  const char* layout() const;
};

int entry_count();
Entry entry_at(int index);

struct Problem {
  const char *op, *types, *layout;
  int64_t m, n, k;
  const ConvShape* conv;
};

// QK_OK and the cost, or QK_NO_KERNEL and the reason, in the words of the Python judges.
int32_t judge(const Entry& entry, const Problem& problem, double& microseconds, const Say& say);

// `wanted` where it is a kernel that takes the problem, the cheapest for QK_ANY_KERNEL.
int32_t choose(int32_t wanted, const Problem& problem, Entry& entry, const Say& say, int32_t* index = nullptr);

ConvShape shape_of(const qk_conv_shape& shape);
int32_t check_shape(const qk_conv_shape& shape, const Say& say);  // of any convolution: no index overflows
idx merged_groups(idx groups, idx filters);  // how many make a matrix: the fewest that fill a panel, or all
bool is_depthwise(const ConvShape& shape);
bool is_small_groups(const ConvShape& shape);  // for csrc/cpu/grouped.h, if nothing but its shape were asked

}  // namespace qk::capi
