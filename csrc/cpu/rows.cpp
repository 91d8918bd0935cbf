// Every kernel of this build, in one list. The build says which ISA files it has.
#include "rows.h"

#include <string.h>

#include "plan.h"

namespace qk {

RowList all_rows() {
  static const RowList lists[] = {
#ifdef QK_HAVE_X86_AMX
      x86_amx::list,
#endif
#ifdef QK_HAVE_X86_AVX512VNNI
      x86_avx512vnni::list,
#endif
#ifdef QK_HAVE_X86_AVXVNNI
      x86_avxvnni::list,
#endif
#ifdef QK_HAVE_X86_AVX512BW
      x86_avx512bw::list,
#endif
#ifdef QK_HAVE_X86_AVX2
      x86_avx2::list,
#endif
      portable::list,
  };
  constexpr int kLists = sizeof lists / sizeof lists[0];
  struct Joined {
    KernelRow rows[kLists * 4];
    int count = 0;
    Joined() {
      for (const RowList& list : lists)
        for (int i = 0; i < list.count; ++i) memcpy(&rows[count++], &list.rows[i], sizeof(KernelRow));
    }
  };
  static const Joined joined;
  return {joined.rows, joined.count};
}

DepthwiseList depthwise_rows() {
  static const DepthwiseList lists[] = {
#ifdef QK_HAVE_X86_AVX512VNNI
      x86_avx512vnni::depthwise,
#endif
#ifdef QK_HAVE_X86_AVXVNNI
      x86_avxvnni::depthwise,
#endif
#ifdef QK_HAVE_X86_AVX512BW
      x86_avx512bw::depthwise,
#endif
#ifdef QK_HAVE_X86_AVX2
      x86_avx2::depthwise,
#endif
      portable::depthwise,
  };
  constexpr int kLists = sizeof lists / sizeof lists[0];
  struct Joined {
    DepthwiseRow rows[kLists * 4];
    int count = 0;
    Joined() {
      for (const DepthwiseList& list : lists)
        for (int i = 0; i < list.count; ++i) rows[count++] = list.rows[i];
    }
  };
  static const Joined joined;
  return {joined.rows, joined.count};
}

DirectList direct_rows() {
  static const DirectList lists[] = {
#ifdef QK_HAVE_X86_AMX_CONV
      x86_amx_conv::direct,
#endif
#ifdef QK_HAVE_X86_AVX512VNNI_CONV
      x86_avx512vnni_conv::grouped,
#endif
      {nullptr, 0},
  };
  constexpr int kLists = sizeof lists / sizeof lists[0];
  struct Joined {
    DirectRow rows[kLists * 4];
    int count = 0;
    Joined() {
      for (const DirectList& list : lists)
        for (int i = 0; i < list.count; ++i) rows[count++] = list.rows[i];
    }
  };
  static const Joined joined;
  return {joined.rows, joined.count};
}

}  // namespace qk
