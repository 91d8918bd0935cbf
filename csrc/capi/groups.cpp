#include "groups.h"

namespace qk::capi {
namespace {

struct Layout {  // of one matrix; sizes in bytes
  idx k, n, group, groups, panels;
  size_t codes, scales, sums, zeros;

  size_t total() const { return codes + scales + sums + zeros; }
};

int32_t lay_out(int64_t k, int64_t n, int64_t group, int32_t bits, bool zeros, bool sums, Layout& l, const Say& say) {
  if (k < 1 || n < 1 || k >= kMost || n >= kMost || !fits(double(k + kPackedK) * double(n + kPanel) * 4))
    return say(QK_BAD_ARGUMENT, "weights of k=%lld, n=%lld, wanted sizes of 1 … 2^31 − 1", (long long)k, (long long)n);
  if (bits != 8 && bits != 4 && bits != 2) return say(QK_BAD_ARGUMENT, "bits is %d, wanted 8, 4 or 2", bits);
  if (group < kUnit || group % kUnit)
    return say(QK_BAD_ARGUMENT, "group is %lld, wanted a multiple of %lld", (long long)group, (long long)kUnit);
  l.k = k, l.n = n;
  l.group = min_of(group, padded(k, kPackedK)), l.groups = ceil_div(k, l.group), l.panels = ceil_div(n, kPanel);
  const size_t values = size_t(l.panels * kPanel) * size_t(l.groups);
  l.codes = size_t(l.panels) * size_t(padded(k, kPackedK) * kPanel * bits / 8);
  l.scales = values * 4, l.sums = sums ? values * 4 : 0, l.zeros = zeros ? values : 0;
  return QK_OK;
}

void pack_codes(const Layout& l, int32_t bits, const uint8_t* from, int64_t row, int64_t column, uint8_t* to) {
  const idx planes = 8 / bits, k_whole = padded(l.k, kPackedK), panel = k_whole * kPanel * bits / 8;
  memset(to, 0, l.codes);
  for (idx t = 0; t < l.k; ++t)
    for (idx j = 0; j < l.n; ++j) {
      const idx line = t / (kGroup * planes) * kPanel * kGroup, plane = t / kGroup % planes;
      to[j / kPanel * panel + line + j % kPanel * kGroup + t % kGroup] |=
          uint8_t(from[t * row + j * column] << (plane * bits));
    }
}

// (groups, n) → [panel][group][16], zeros behind n.
template <class T>
void by_panel(const Layout& l, const T* from, T* to) {
  for (idx p = 0; p < l.panels; ++p)
    for (idx g = 0; g < l.groups; ++g, to += kPanel)
      for (idx j = 0; j < kPanel; ++j) to[j] = p * kPanel + j < l.n ? from[g * l.n + p * kPanel + j] : T(0);
}

// Σ (w − z) of every group.
void sum_groups(const Layout& l, const uint8_t* from, int64_t row, int64_t column, const uint8_t* zeros, int32_t zero,
                int32_t* to) {
  for (idx p = 0; p < l.panels; ++p)
    for (idx g = 0; g < l.groups; ++g, to += kPanel)
      for (idx c = 0; c < kPanel; ++c) {
        const idx j = p * kPanel + c;
        int32_t sum = 0;
        for (idx t = g * l.group; j < l.n && t < min_of((g + 1) * l.group, l.k); ++t)
          sum += int32_t(from[t * row + j * column]) - (zeros ? int32_t(zeros[g * l.n + j]) : zero);
        to[c] = sum;
      }
}

bool tame(const Layout& l, const float* scales) {  // cpu/amx_reals.h
  bool all = true;
  for (idx i = 0; i < l.groups * l.n; ++i) all &= scales[i] >= 0x1p-50f && scales[i] <= 0x1p22f;
  return all;
}

int32_t check_codes(const Layout& l, int32_t bits, const uint8_t* codes, int64_t row, int64_t column, const Say& say) {
  for (idx t = 0; t < l.k; ++t)
    for (idx j = 0; j < l.n; ++j)
      if (codes[t * row + j * column] >> bits)
        return say(QK_BAD_ARGUMENT, "codes has %d at (%lld, %lld), wanted 0 … %d", int(codes[t * row + j * column]),
                   (long long)t, (long long)j, (1 << bits) - 1);
  return QK_OK;
}

int32_t check_zeros(const Layout& l, int32_t bits, const uint8_t* zeros, int32_t zero, const Say& say) {
  const int32_t most = (1 << bits) - 1;
  for (idx i = 0; zeros && i < l.groups * l.n; ++i)
    if (zeros[i] > most)
      return say(QK_BAD_ARGUMENT, "zeros has %d at %lld, wanted 0 … %d", int(zeros[i]), (long long)i, most);
  if (!zeros && (zero < 0 || zero > most)) return say(QK_BAD_ARGUMENT, "zero is %d, wanted 0 … %d", zero, most);
  return QK_OK;
}

}  // namespace

int32_t read_groups(const qk_packed_groups* given, Int4& g, int32_t& bits, const Say& say) {
  qk_packed_groups p;
  if (const int32_t status = read_struct(given, p, "qk_packed_groups", say)) return status;
  Layout l;
  if (const int32_t status = lay_out(p.k, p.n, p.group, p.bits, p.has_zeros, p.has_sums, l, say)) return status;
  const uint8_t* const memory = static_cast<const uint8_t*>(p.memory);
  if (!memory) return say(QK_NULL_POINTER, "memory for the packed weights is NULL");
  if (reinterpret_cast<uintptr_t>(memory) % kLine)
    return say(QK_BAD_ARGUMENT, "memory for the packed weights is not 64-byte aligned");
  if (p.zero < 0 || p.zero >> p.bits) return say(QK_BAD_ARGUMENT, "qk_packed_groups.zero is %d", p.zero);
  g = {};
  g.k = l.k, g.n = l.n, g.group = l.group, g.w = memory, g.w_panel = padded(l.k, kPackedK) * kPanel * p.bits / 8;
  g.scales = memory + l.codes, g.scale_type = kScaleF32;
  if (p.has_sums) g.w_sums = reinterpret_cast<const int32_t*>(memory + l.codes + l.scales);
  if (p.has_zeros) g.zeros = memory + l.codes + l.scales + l.sums;
  g.zero = p.zero, g.fits_int8 = true, g.tame_scales = p.tame_scales;
  bits = p.bits;
  return QK_OK;
}

Int4 groups_of_columns(Int4 g, idx j) {
  const idx values = j * g.groups();
  g.w += j / kPanel * g.w_panel;
  g.scales = static_cast<const float*>(g.scales) + values;
  if (g.w_sums) g.w_sums += values;
  if (g.zeros) g.zeros += values;
  return g;
}

}  // namespace qk::capi

using namespace qk::capi;

extern "C" {

int32_t qk_pack_groups_bytes(int64_t k, int64_t n, int64_t group, int32_t bits, int32_t zeros, int32_t sums,
                             size_t* bytes, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (!bytes) return say(QK_NULL_POINTER, "bytes is NULL");
  Layout l;
  if (const int32_t status = lay_out(k, n, group, bits, zeros, sums, l, say)) return status;
  *bytes = l.total();
  return QK_OK;
}

int32_t qk_pack_groups(int64_t k, int64_t n, int64_t group, int32_t bits, const uint8_t* codes, int64_t row,
                       int64_t column, const float* scales, const uint8_t* zeros, int32_t zero, int32_t sums,
                       void* memory, size_t bytes, qk_packed_groups* packed, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (const int32_t status = check_room(packed, "qk_packed_groups", say)) return status;
  Layout l;
  if (const int32_t status = lay_out(k, n, group, bits, zeros != nullptr, sums, l, say)) return status;
  if (!codes || !scales) return say(QK_NULL_POINTER, "%s is NULL", codes ? "scales" : "codes");
  if (!strides_fit(k, row, n, column)) return say(QK_BAD_ARGUMENT, "the strides of the codes are too large");
  if (!memory) return say(QK_NULL_POINTER, "memory for the packed weights is NULL");
  if (reinterpret_cast<uintptr_t>(memory) % kLine)
    return say(QK_BAD_ARGUMENT, "memory for the packed weights is not 64-byte aligned");
  if (bytes < l.total())
    return say(QK_SMALL_WORKSPACE, "the packed weights take %zu bytes, memory has %zu", l.total(), bytes);
  if (const int32_t status = check_codes(l, bits, codes, row, column, say)) return status;
  if (const int32_t status = check_zeros(l, bits, zeros, zero, say)) return status;
  uint8_t* const to = static_cast<uint8_t*>(memory);
  pack_codes(l, bits, codes, row, column, to);
  by_panel(l, scales, reinterpret_cast<float*>(to + l.codes));
  if (sums) sum_groups(l, codes, row, column, zeros, zero, reinterpret_cast<int32_t*>(to + l.codes + l.scales));
  if (zeros) by_panel(l, zeros, to + l.codes + l.scales + l.sums);
  packed->k = k, packed->n = n, packed->group = group, packed->bits = bits, packed->zero = zeros ? 0 : zero;
  packed->has_zeros = zeros != nullptr, packed->has_sums = sums != 0, packed->memory = memory;
  packed->tame_scales = tame(l, scales);
  return QK_OK;
}

}  // extern "C"
