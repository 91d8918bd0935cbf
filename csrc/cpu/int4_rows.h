// The end of an ISA file of int4.h's weights: its rows, for signed and unsigned activations, float sums (groups with scales
// of their own) and, of 4 and 2 bits, integer sums.
#pragma once
#include "int4_direct.h"
#include "int4_floats.h"
#include "rows.h"

#define QK_STR2(x) #x
#define QK_STR(x) QK_STR2(x)

// clang-format off
#define QK_INT4_ROW(kind, V, tile, a, as, W, w, sums, floats, min_m)                                              \
  {                                                                                                             \
    "linear_" a w sums "_" tile "_" QK_STR(QK_ISA), a w sums, QK_STR(QK_ISA), as, floats, false, W::kSigned, W::kBits, \
        kind<V, as, W, floats>::kMr, kind<V, as, W, floats>::kNr, min_m, kGops, kCallUs, kGbS,                  \
        kind<V, as, W, floats>::scratch_bytes, kind<V, as, W, floats>::block                                    \
  }

// Needs kFloatGops.
#define QK_FLOAT_ROW(V, tile, W, w)                                                                              \
  {                                                                                                             \
    "weight_only_f32" w "f32_" tile "_" QK_STR(QK_ISA), "f32" w "f32", QK_STR(QK_ISA), true, true, true, W::kSigned,   \
        W::kBits, Floats<V, W>::kMr, Floats<V, W>::kNr, 1, kFloatGops, kCallUs, kGbS, Floats<V, W>::scratch_bytes, \
        Floats<V, W>::block                                                                                     \
  }
#define QK_FLOAT_ROWS(V, tile)                                                                                   \
  QK_FLOAT_ROW(V, tile, U4, "u4"), QK_FLOAT_ROW(V, tile, U2, "u2"), QK_FLOAT_ROW(V, tile, U8, "u8"),            \
      QK_FLOAT_ROW(V, tile, S8, "s8")

#define QK_INT4_ROWS(V, tile, ...)                                                                                    \
  static const Int4Row int4_rows[] = {                                                                           \
      QK_INT4_ROW(Direct, V, tile, "s8", true, U4, "u4", "f32", true, 1),                                        \
      QK_INT4_ROW(Direct, V, tile, "u8", false, U4, "u4", "f32", true, 1),                                       \
      QK_INT4_ROW(Direct, V, tile, "s8", true, U4, "u4", "s32", false, 1),                                       \
      QK_INT4_ROW(Direct, V, tile, "u8", false, U4, "u4", "s32", false, 1),                                      \
      QK_INT4_ROW(Direct, V, tile, "s8", true, U2, "u2", "f32", true, 1),                                        \
      QK_INT4_ROW(Direct, V, tile, "u8", false, U2, "u2", "f32", true, 1),                                       \
      QK_INT4_ROW(Direct, V, tile, "s8", true, U2, "u2", "s32", false, 1),                                       \
      QK_INT4_ROW(Direct, V, tile, "u8", false, U2, "u2", "s32", false, 1),                                      \
      QK_INT4_ROW(Direct, V, tile, "s8", true, S8, "s8", "f32", true, 1),                                        \
      QK_INT4_ROW(Direct, V, tile, "u8", false, S8, "s8", "f32", true, 1),                                       \
      QK_INT4_ROW(Direct, V, tile, "s8", true, U8, "u8", "f32", true, 1),                                        \
      QK_INT4_ROW(Direct, V, tile, "u8", false, U8, "u8", "f32", true, 1),                                       \
      __VA_ARGS__};                                                                                              \
  const Int4List int4_list = {int4_rows, int(sizeof int4_rows / sizeof int4_rows[0])};
// clang-format on
