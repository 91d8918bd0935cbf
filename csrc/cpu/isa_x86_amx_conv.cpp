// Convolutions on AMX without windows side by side (amx_conv.h), for the rows of x86_amx.
#define QK_ISA x86_amx_conv
#include "lanes_avx512.h"
#include "amx_conv.h"
#include "rows.h"
#include "x86.h"

namespace qk {
namespace x86_amx_conv {

constexpr double kGops = 3500;

#define QK_DIRECT_ROW(as, ws)         \
  {"x86_amx",                         \
   "x86_amx_conv",                    \
   kGops,                             \
   as,                                \
   ws,                                \
   DirectConv<as, ws>::takes,         \
   DirectConv<as, ws>::scratch_bytes, \
   DirectConv<as, ws>::block}

static const DirectRow rows_here[] = {QK_DIRECT_ROW(false, true), QK_DIRECT_ROW(true, true), QK_DIRECT_ROW(true, false),
                                      QK_DIRECT_ROW(false, false)};
const DirectList direct = {rows_here, 4};

}  // namespace x86_amx_conv
}  // namespace qk
