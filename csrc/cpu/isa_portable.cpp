// gemm portable: acc[r][j] += Σ_t a[r][4q + t] · w[4q + t][j], plain C++ for any CPU.
//
// Why 4×16: one weight panel wide; sixteen 32-bit lanes are four SSE2 or NEON registers, which the compiler fills by
// itself. 16-bit factors, so that it may use pmaddwd or smlal instead of a 32-bit multiplication.
// Contract: isa_rows.h and driver.h. This file is compiled for the baseline of the platform and nothing more.
#define QK_ISA portable
#define QK_TILE "4x16"
#include "lanes_portable.h"
#include "depthwise.h"
#include "isa_rows.h"

namespace qk {
namespace portable {
namespace {

constexpr idx kMinM = 1;
constexpr double kGops = 5, kCallUs = 0.05;

template <bool ASigned, bool WSigned>
struct Isa {
  static constexpr idx kMr = 4, kPanels = 1, kKStep = kChunk;
  static constexpr unsigned kFlip = 0;
  static constexpr idx a_bytes(idx rows, idx k) { return rows * k * 2; }

  static void pack(const Gemm& g, idx i, idx rows, uint8_t* dst) {
    pack_chunks<int16_t, ASigned, 0>(g, i, rows, reinterpret_cast<int16_t*>(dst));
  }

  static void micro(int rows, int, const uint8_t* a_bytes, const uint8_t* w, idx, idx k, const int32_t*, int32_t* out,
                    idx out_row) {
    const int16_t* a = reinterpret_cast<const int16_t*>(a_bytes);
    for (int r = 0; r < rows; ++r) {
      int32_t acc[kPanel] = {};
      for (idx q = 0; q < k / kGroup; ++q) {
        const int16_t* x = a + (q * kGroup / kChunk * rows + r) * kChunk + q % (kChunk / kGroup) * kGroup;
        const uint8_t* y = w + q * kPanel * kGroup;
        for (idx j = 0; j < kPanel; ++j) {
          int32_t sum = 0;
          for (idx t = 0; t < kGroup; ++t) {
            const uint8_t byte = y[j * kGroup + t];
            sum += x[t] * (WSigned ? int16_t(int8_t(byte)) : int16_t(byte));
          }
          acc[j] = int32_t(uint32_t(acc[j]) + uint32_t(sum));
        }
      }
      memcpy(out + r * out_row, acc, sizeof acc);
    }
  }
};

template <bool ASigned, bool WSigned>
struct QuadsIsa : PlainQuads<ASigned, WSigned> {};

double peak(idx) { return 0; }  // no instruction set of its own to have a peak

}  // namespace

QK_ROWS
QK_DEPTHWISE_ROWS("4x4", 2)

}  // namespace portable
}  // namespace qk
