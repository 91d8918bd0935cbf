// The instructions of a whole warp or warpgroup: ldmatrix, shuffles, mma, wgmma. Fragment layouts are PTX's (ISA manual,
// "Matrix multiply-accumulate"): of a lane, g = lane / 4 is a row of A and D and a column of W, q = lane mod 4 a group of
// four k, or two columns of D.
#pragma once
#include "async.h"

namespace qk::emulator {

inline int16_t widened(uint32_t word, int byte, bool is_signed) {
  const auto value = static_cast<uint8_t>(word >> 8 * byte);
  return is_signed ? static_cast<int8_t>(value) : value;
}

inline int32_t dp4a(uint32_t a, uint32_t w, int32_t sum, bool a_signed, bool w_signed) {
  auto total = static_cast<uint32_t>(sum);
  for (int i = 0; i < 4; ++i) total += static_cast<uint32_t>(widened(a, i, a_signed) * widened(w, i, w_signed));
  return static_cast<int32_t>(total);
}

inline int32_t dot(const int16_t* a, const int16_t* w, int k, int32_t sum) {
  auto total = static_cast<uint32_t>(sum);
  int32_t part = 0;  // 32 products of two bytes cannot overflow
  for (int i = 0; i < k; ++i) part += a[i] * w[i];
  return static_cast<int32_t>(total + static_cast<uint32_t>(part));
}

// ---------------------------------------------------------------- within a warp
struct Shuffle {
  uint32_t value;
  int from;
};

inline uint32_t shuffle(uint32_t value, int from) {
  Shuffle mine{value, from & 31};
  meet("shfl.sync", &mine, [](Warp& warp) {
    std::array<uint32_t, kLanes> values;
    for (int i = 0; i < kLanes; ++i) values[i] = static_cast<Shuffle*>(warp.slots[i])->value;
    for (int i = 0; i < kLanes; ++i) {
      auto* one = static_cast<Shuffle*>(warp.slots[i]);
      one->value = values[one->from];
    }
  });
  return mine.value;
}

inline void warp_sync() {
  meet("bar.warp.sync", nullptr, [](Warp&) {});
}

struct LdMatrix {
  uint32_t address;
  uint32_t* out;
};

inline void ldmatrix_x4(uint32_t (&out)[4], uint32_t address) {
  LdMatrix mine{address, out};
  shared_at(my_cta(), address, 16, 16, "ldmatrix");
  meet("ldmatrix.x4", &mine, [](Warp& warp) {
    std::vector<Access> rows;
    for (void* slot : warp.slots) rows.push_back({static_cast<LdMatrix*>(slot)->address, 16, "ldmatrix"});
    count_conflicts(rows);
    for (int lane = 0; lane < kLanes; ++lane)
      for (int j = 0; j < 4; ++j)
        memcpy(static_cast<LdMatrix*>(warp.slots[lane])->out + j,
               warp.cta->shared.data() + rows[j * 8 + lane / 4].address + lane % 4 * 4, 4);
  });
}

// ---------------------------------------------------------------- mma.sync
struct Mma {
  int32_t* d;
  const uint32_t* a;
  const uint32_t* w;
};

// rows 16 and k 32: m16n8k32; rows 8 and k 16: m8n8k16
template <int kRows, int kK, bool kASigned, bool kWSigned>
inline void mma(int32_t* d, const uint32_t* a, const uint32_t* w) {
  Mma mine{d, a, w};
  meet(kRows == 16 ? "mma.m16n8k32" : "mma.m8n8k16", &mine, [](Warp& warp) {
    ++machine.counters.products;
    int16_t as[kRows][kK], ws[8][kK];
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto* one = static_cast<Mma*>(warp.slots[lane]);
      const int g = lane / 4, q = lane % 4;
      for (int part = 0; part < kK / 16; ++part)
        for (int x = 0; x < 4; ++x) {
          for (int h = 0; h < kRows / 8; ++h)
            as[g + 8 * h][16 * part + 4 * q + x] = widened(one->a[kRows / 8 * part + h], x, kASigned);
          ws[g][16 * part + 4 * q + x] = widened(one->w[part], x, kWSigned);
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto* one = static_cast<Mma*>(warp.slots[lane]);
      const int g = lane / 4, q = lane % 4;
      for (int e = 0; e < kRows / 4; ++e) one->d[e] = dot(as[g + e / 2 * 8], ws[2 * q + e % 2], kK, one->d[e]);
    }
  });
}

// ---------------------------------------------------------------- wgmma
// 16 bytes of a row of an operand in shared memory, by its descriptor: K-major, 128-byte swizzle.
inline const uint8_t* operand(Cta& cta, uint64_t descriptor, int row, int chunk, std::vector<Access>* seen) {
  if (descriptor >> 62 != 1) fault("wgmma: the descriptor does not say 128-byte swizzle");
  const uint32_t start = (descriptor & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF) << 4;
  const uint32_t address = swizzled_128(start + row / 8 * stride + row % 8 * 128 + chunk * 16);
  if (seen) seen->push_back({address, 16, "wgmma"});
  return shared_at(cta, address, 16, 16, "wgmma");
}

inline void gather(Cta& cta, uint64_t descriptor, int first_row, int rows, bool is_signed, int16_t (*out)[32]) {
  for (int chunk = 0; chunk < 2; ++chunk) {
    std::vector<Access> seen;
    for (int row = 0; row < rows; ++row) {
      const uint8_t* bytes = operand(cta, descriptor, first_row + row, chunk, &seen);
      for (int i = 0; i < 16; ++i)
        out[row][chunk * 16 + i] = is_signed ? static_cast<int8_t>(bytes[i]) : static_cast<int16_t>(bytes[i]);
    }
    count_conflicts(seen);
  }
}

// The share of one warp of the group: 16 rows of 64.
inline void multiply(Warp& warp, const Product& one) {
  static int16_t a[16][32], w[256][32];
  ++machine.counters.products;
  gather(*warp.cta, one.a, warp.index % 4 * 16, 16, one.a_signed, a);
  gather(*warp.cta, one.w, 0, one.n, one.w_signed, w);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int j = 0; j < one.n / 8; ++j)
      for (int e = 0; e < 4; ++e) {
        int32_t& d = one.d[lane][4 * j + e];
        d = dot(a[lane / 4 + e / 2 * 8], w[8 * j + lane % 4 * 2 + e % 2], 32, one.accumulate ? d : 0);
      }
}

inline void wgmma_fence() {
  meet("wgmma.fence", nullptr, [](Warp& warp) { warp.fenced = true; });
}

struct Wgmma {
  Product product;
  int32_t* d;
};

inline void wgmma(int n, bool a_signed, bool w_signed, int32_t* d, uint64_t a, uint64_t w, bool accumulate) {
  Wgmma mine{{a, w, n, a_signed, w_signed, accumulate, {}}, d};
  meet("wgmma", &mine, [](Warp& warp) {
    if (!warp.fenced) fault("wgmma without wgmma.fence before it");
    Product product = static_cast<Wgmma*>(warp.slots[0])->product;
    for (int i = 0; i < kLanes; ++i) {
      const auto* one = static_cast<Wgmma*>(warp.slots[i]);
      if (one->product.a != product.a || one->product.w != product.w || one->product.accumulate != product.accumulate)
        fault("wgmma: the lanes of a warp have different operands");
      product.d[i] = one->d;
    }
    warp.products.push_back(product);
  });
}

// Early or late: at commit, or only when somebody waits for it. Until then the accumulators are stale.
inline void wgmma_commit() {
  meet("wgmma.commit_group", nullptr, [](Warp& warp) {
    warp.groups.push_back(std::move(warp.products));
    warp.products.clear();
    if (!machine.chance(4)) return;
    for (auto& group : warp.groups) {
      for (const Product& one : group) multiply(warp, one);
      group.clear();
    }
  });
}

inline void wgmma_wait(int still_under_way) {
  meet("wgmma.wait_group", reinterpret_cast<void*>(static_cast<intptr_t>(still_under_way)), [](Warp& warp) {
    const auto keep = static_cast<size_t>(reinterpret_cast<intptr_t>(warp.slots[0]));
    for (; warp.groups.size() > keep; warp.groups.pop_front())
      for (const Product& one : warp.groups.front()) multiply(warp, one);
    if (warp.groups.empty()) warp.fenced = false;
  });
}

}  // namespace qk::emulator
