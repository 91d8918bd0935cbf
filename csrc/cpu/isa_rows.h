// The end of every ISA file: its rows, one for each pair of signs.
//
// QK_ROW(types, ASigned, WSigned) needs in scope: QK_ISA, QK_TILE ("6x16"), Isa<ASigned, WSigned>, kMinM, kGops,
// kCallUs and peak(rounds).
#pragma once
#include "driver.h"
#include "rows.h"

#define QK_STR2(x) #x
#define QK_STR(x) QK_STR2(x)

// clang-format off
#define QK_ROW(types, as, ws)                                                                             \
  {                                                                                                       \
    "gemm_" types "_" QK_TILE "_" QK_STR(QK_ISA), types, QK_STR(QK_ISA), as, ws, Isa<as, ws>::kFlip != 0, Isa<as, ws>::kMr,       \
        Isa<as, ws>::kPanels *kPanel, Isa<as, ws>::kKStep, kMinM, kGops, kCallUs,                         \
        Driver<Isa<as, ws>, as>::scratch_bytes, Driver<Isa<as, ws>, as>::block, peak                      \
  }

#define QK_ROWS                                                                                     \
  static const KernelRow rows[] = {QK_ROW("u8s8s32", false, true), QK_ROW("s8s8s32", true, true),   \
                                   QK_ROW("s8u8s32", true, false), QK_ROW("u8u8s32", false, false)}; \
  const RowList list = {rows, 4};
// clang-format on
