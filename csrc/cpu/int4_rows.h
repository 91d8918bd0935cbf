// The end of an ISA file of 4- and 2-bit weights: its rows, for signed and unsigned activations, 4 and 2 bits, float sums
// (groups with scales of their own) and integer sums.
#pragma once
#include "int4_direct.h"
#include "int4_floats.h"
#include "rows.h"

#define QK_STR2(x) #x
#define QK_STR(x) QK_STR2(x)

// clang-format off
#define QK_INT4_ROW(kind, V, tile, a, as, bits, w, sums, floats, min_m)                                           \
  {                                                                                                             \
    "linear_" a w sums "_" tile "_" QK_STR(QK_ISA), a w sums, QK_STR(QK_ISA), as, floats, false, bits,                 \
        kind<V, as, bits, floats>::kMr, kind<V, as, bits, floats>::kNr, min_m, kGops, kCallUs, kGbS,            \
        kind<V, as, bits, floats>::scratch_bytes, kind<V, as, bits, floats>::block                              \
  }

// Needs kFloatGops.
#define QK_FLOAT_ROW(V, tile, bits, w)                                                                           \
  {                                                                                                             \
    "weight_only_f32" w "f32_" tile "_" QK_STR(QK_ISA), "f32" w "f32", QK_STR(QK_ISA), true, true, true, bits,      \
        Floats<V, bits>::kMr, Floats<V, bits>::kNr, 1, kFloatGops, kCallUs, kGbS, Floats<V, bits>::scratch_bytes,  \
        Floats<V, bits>::block                                                                                  \
  }

#define QK_INT4_ROWS(V, tile, ...)                                                                                    \
  static const Int4Row int4_rows[] = {                                                                           \
      QK_INT4_ROW(Direct, V, tile, "s8", true, 4, "u4", "f32", true, 1),                                         \
      QK_INT4_ROW(Direct, V, tile, "u8", false, 4, "u4", "f32", true, 1),                                        \
      QK_INT4_ROW(Direct, V, tile, "s8", true, 4, "u4", "s32", false, 1),                                        \
      QK_INT4_ROW(Direct, V, tile, "u8", false, 4, "u4", "s32", false, 1),                                       \
      QK_INT4_ROW(Direct, V, tile, "s8", true, 2, "u2", "f32", true, 1),                                         \
      QK_INT4_ROW(Direct, V, tile, "u8", false, 2, "u2", "f32", true, 1),                                        \
      QK_INT4_ROW(Direct, V, tile, "s8", true, 2, "u2", "s32", false, 1),                                        \
      QK_INT4_ROW(Direct, V, tile, "u8", false, 2, "u2", "s32", false, 1),                                       \
      __VA_ARGS__};                                                                                              \
  const Int4List int4_list = {int4_rows, int(sizeof int4_rows / sizeof int4_rows[0])};
// clang-format on
