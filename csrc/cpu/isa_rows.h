// The end of every ISA file: its rows, one for each pair of signs.
//
// QK_ROW(types, ASigned, WSigned) needs in scope: QK_ISA, QK_TILE ("6x16"), Isa<ASigned, WSigned> (or
// QK_DRIVER(as, ws), a driver of its own), kMinM, kGops, kCallUs and peak(rounds).
#pragma once
#include "driver.h"
#include "rows.h"

#ifndef QK_DRIVER
#define QK_DRIVER(as, ws) Driver<Isa<as, ws>, as>
#endif
#define QK_STR2(x) #x
#define QK_STR(x) QK_STR2(x)

// clang-format off
#define QK_ROW(types, as, ws)                                                                             \
  {                                                                                                       \
    "gemm_" types "_" QK_TILE "_" QK_STR(QK_ISA), types, QK_STR(QK_ISA), as, ws,                          \
        QK_DRIVER(as, ws)::kNeedsSums, QK_DRIVER(as, ws)::kMr, QK_DRIVER(as, ws)::kNr,                    \
        QK_DRIVER(as, ws)::kKStep, kMinM, kGops, kCallUs,                                                 \
        QK_DRIVER(as, ws)::scratch_bytes, QK_DRIVER(as, ws)::block, peak                                  \
  }

#define QK_ROWS                                                                                     \
  static const KernelRow rows[] = {QK_ROW("u8s8s32", false, true), QK_ROW("s8s8s32", true, true),   \
                                   QK_ROW("s8u8s32", true, false), QK_ROW("u8u8s32", false, false)}; \
  const RowList list = {rows, 4};
// clang-format on
