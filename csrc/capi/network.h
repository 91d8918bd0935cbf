// What the functions on codes of one scale check alike.
#pragma once
#include "../elementwise.h"
#include "kernels.h"

namespace qk::capi {

const char* code_letters(int32_t type);  // "s8", "u8"; null for another
int32_t check_codes_type(int32_t type, const Say& say);
int32_t check_scale(const char* name, float scale, const Say& say);
int32_t check_point(const char* name, int32_t zero, int32_t type, const Say& say);

}  // namespace qk::capi
