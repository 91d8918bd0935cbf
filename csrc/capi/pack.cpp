#include "pack.h"

#include "../cpu/pack.h"
#include "kernels.h"

namespace qk::capi {
namespace {

size_t panel_bytes(idx k, idx n) { return size_t(padded(k, kPackedK)) * size_t(padded(n, kPanel)); }
size_t sums_bytes(idx n) { return size_t(padded(n, kPanel)) * 4; }

bool is_size(int64_t size) { return size >= 1 && size < kMost; }

int32_t check_matrix(int64_t k, int64_t n, const Say& say) {
  if (!is_size(k) || !is_size(n) || !fits(double(k + kPackedK) * double(n + kPanel)))
    return say(QK_BAD_ARGUMENT, "weights of k=%lld, n=%lld, wanted sizes of 1 … 2^31 − 1", (long long)k, (long long)n);
  return QK_OK;
}

int32_t check_type(int32_t type, const Say& say) {
  return type == QK_S8 || type == QK_U8
             ? QK_OK
             : say(QK_BAD_ARGUMENT, "weights are of type %d, wanted QK_S8 (%d) or QK_U8 (%d)", type, QK_S8, QK_U8);
}

int32_t check_memory(const void* memory, size_t bytes, size_t wanted, const Say& say) {
  if (!memory) return say(QK_NULL_POINTER, "memory for the packed weights is NULL");
  if (reinterpret_cast<uintptr_t>(memory) % kLine)
    return say(QK_BAD_ARGUMENT, "memory for the packed weights is not 64-byte aligned");
  if (bytes < wanted)
    return say(QK_SMALL_WORKSPACE, "the packed weights take %zu bytes, memory has %zu", wanted, bytes);
  return QK_OK;
}

// How the weights of a convolution lie: matrices of merged groups, or quads of taps.
struct ConvLayout {
  bool depthwise;
  idx merged, matrices, taps, depth, k, n;  // depth: channels of a group. k, n: of one matrix
  idx groups_of_taps, rows;                 // c4t4: ⌈kh/4⌉, output rows that share an interleaving

  explicit ConvLayout(const ConvShape& s) {
    depthwise = is_depthwise(s);
    merged = merged_groups(s.groups, s.filters), matrices = s.groups / merged;
    taps = s.kernel[0] * s.kernel[1] * s.kernel[2], depth = s.channels / s.groups;
    k = taps * depth * merged, n = s.filters / matrices;
    groups_of_taps = ceil_div(s.kernel[1], kGroup), rows = groups_of_taps * kGroup - s.kernel[1] + 1;
  }

  double estimate(const ConvShape& s) const {
    const double filters = double(s.filters) + 16 * double(matrices);
    return depthwise ? double(rows) * double(groups_of_taps) * 4 * double(s.kernel[2]) * filters
                     : double(k + kPackedK) * filters;
  }
  size_t data(const ConvShape& s) const {
    return depthwise ? size_t(rows * groups_of_taps * s.kernel[2]) * size_t(padded(s.channels, kPanel) * kGroup)
                     : size_t(matrices) * panel_bytes(k, n);
  }
  size_t sums(const ConvShape& s) const {
    return depthwise ? sums_bytes(s.channels) : size_t(matrices) * sums_bytes(n);
  }
};

int32_t check_weights(const qk_conv_shape* shape, ConvShape& s, const Say& say) {
  if (!shape) return say(QK_NULL_POINTER, "qk_conv_shape is NULL");
  for (const int64_t size :
       {shape->channels, shape->filters, shape->groups, shape->kernel[0], shape->kernel[1], shape->kernel[2]})
    if (!is_size(size))
      return say(QK_BAD_ARGUMENT, "a size of the weights is %lld, wanted 1 … 2^31 − 1", (long long)size);
  if (shape->channels % shape->groups || shape->filters % shape->groups)
    return say(QK_BAD_ARGUMENT, "%lld channels and %lld filters do not divide by %lld groups",
               (long long)shape->channels, (long long)shape->filters, (long long)shape->groups);
  const double taps = double(shape->kernel[0]) * double(shape->kernel[1]) * double(shape->kernel[2]);
  if (!fits(taps * double(shape->channels)))
    return say(QK_BAD_ARGUMENT, "the kernel has %.3g taps of %lld channels: too many", taps,
               (long long)shape->channels);
  s = shape_of(*shape);
  if (!fits(ConvLayout(s).estimate(s))) return say(QK_BAD_ARGUMENT, "the weights are too large");
  return QK_OK;
}

// Column j of merged matrix `at`, row t of it: where in the plain weights, or −1 between groups.
idx plain_index(const ConvLayout& l, idx at, idx row, idx j) {
  const idx per = l.n / l.merged, g = j / per;
  const idx tap = row / (l.merged * l.depth), within = row % (l.merged * l.depth);
  if (within / l.depth != g) return -1;
  const idx filter = at * l.n + j;
  return (filter * l.taps + tap) * l.depth + within % l.depth;
}

// Plain weights whose groups are not merged are a strided matrix each; merged ones are gathered element by element.
void pack_matrices(const ConvShape&, const ConvLayout& l, const uint8_t* from, const int32_t* w_zero, bool is_signed,
                   uint8_t* data, int32_t* sums) {
  const size_t bytes = panel_bytes(l.k, l.n);
  for (idx at = 0; at < l.matrices; ++at) {
    uint8_t* const to = data + size_t(at) * bytes;
    int32_t* const total = sums + at * padded(l.n, kPanel);
    const Range panels = {0, ceil_div(l.n, kPanel)};
    if (l.merged == 1) {
      pack_panels({from + at * l.n * l.k, l.k, l.n, 1, l.k, is_signed}, kPackedK, panels, to, total);
      continue;
    }
    memset(to, 0, bytes), memset(total, 0, sums_bytes(l.n));
    const idx k_whole = padded(l.k, kPackedK);
    for (idx j = 0; j < l.n; ++j) {
      const int32_t between = w_zero ? w_zero[at * l.n + j] : 0;
      uint32_t sum = 0;
      for (idx t = 0; t < l.k; ++t) {
        const idx index = plain_index(l, at, t, j);
        const uint8_t code = index < 0 ? uint8_t(between) : from[index];
        to[(j / kPanel * k_whole + t / kGroup * kGroup) * kPanel + j % kPanel * kGroup + t % kGroup] = code;
        sum += is_signed ? uint32_t(int32_t(int8_t(code))) : code;
      }
      total[j] = int32_t(sum);
    }
  }
}

// [rows][taps/4][width][channels][4]: row r, r taps later.
void pack_depthwise(const ConvShape& s, const ConvLayout& l, const uint8_t* from, bool is_signed, uint8_t* data,
                    int32_t* sums) {
  const idx height = s.kernel[1], width = s.kernel[2], columns = padded(s.channels, kPanel);
  memset(data, 0, l.data(s)), memset(sums, 0, l.sums(s));
  for (idx c = 0; c < s.channels; ++c)
    for (idx y = 0; y < height; ++y)
      for (idx x = 0; x < width; ++x) {
        const uint8_t code = from[(c * height + y) * width + x];
        for (idx r = 0; r < l.rows; ++r) {
          const idx group = r * l.groups_of_taps + (r + y) / kGroup;
          data[((group * width + x) * columns + c) * kGroup + (r + y) % kGroup] = code;
        }
        sums[c] = int32_t(uint32_t(sums[c]) + (is_signed ? uint32_t(int32_t(int8_t(code))) : code));
      }
}

}  // namespace

int32_t read_packed(const qk_packed* given, Weights& w, const Say& say) {
  qk_packed p;
  if (const int32_t status = read_struct(given, p, "qk_packed", say)) return status;
  if (const int32_t status = check_matrix(p.k, p.n, say)) return status;
  if (const int32_t status = check_type(p.type, say)) return status;
  const uint8_t* const memory = static_cast<const uint8_t*>(p.memory);
  if (const int32_t status = check_memory(memory, 1, 0, say)) return status;
  w = {memory, reinterpret_cast<const int32_t*>(memory + panel_bytes(p.k, p.n)), p.k, p.n, p.type == QK_S8};
  return QK_OK;
}

int32_t read_packed_conv(const qk_packed_conv* given, const ConvShape& s, ConvWeights& w, const Say& say) {
  qk_packed_conv p;
  if (const int32_t status = read_struct(given, p, "qk_packed_conv", say)) return status;
  if (const int32_t status = check_type(p.type, say)) return status;
  const uint8_t* const memory = static_cast<const uint8_t*>(p.memory);
  if (const int32_t status = check_memory(memory, 1, 0, say)) return status;
  const ConvLayout layout(s);
  if (p.filters != s.filters || p.channels != s.channels || p.groups != s.groups || p.kernel[0] != s.kernel[0] ||
      p.kernel[1] != s.kernel[1] || p.kernel[2] != s.kernel[2] || bool(p.depthwise) != layout.depthwise)
    return say(QK_BAD_ARGUMENT,
               "the weights were packed for another convolution: %lld filters, %lld channels, "
               "%lld groups, kernel %lldx%lldx%lld",
               (long long)p.filters, (long long)p.channels, (long long)p.groups, (long long)p.kernel[0],
               (long long)p.kernel[1], (long long)p.kernel[2]);
  w = {memory, reinterpret_cast<const int32_t*>(memory + layout.data(s)), layout.matrices, p.type == QK_S8,
       layout.depthwise};
  return QK_OK;
}

}  // namespace qk::capi

using namespace qk;
using namespace qk::capi;

extern "C" {

int32_t qk_pack_bytes(int64_t k, int64_t n, size_t* bytes, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (!bytes) return say(QK_NULL_POINTER, "bytes is NULL");
  if (const int32_t status = check_matrix(k, n, say)) return status;
  *bytes = panel_bytes(k, n) + sums_bytes(n);
  return QK_OK;
}

int32_t qk_pack(int64_t k, int64_t n, int32_t type, const void* weights, int64_t row, int64_t column, void* memory,
                size_t bytes, qk_packed* packed, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (const int32_t status = check_room(packed, "qk_packed", say)) return status;
  if (!weights) return say(QK_NULL_POINTER, "weights is NULL");
  if (const int32_t status = check_matrix(k, n, say)) return status;
  if (const int32_t status = check_type(type, say)) return status;
  if (!strides_fit(k, row, n, column)) return say(QK_BAD_ARGUMENT, "the strides of the weights are too large");
  if (const int32_t status = check_memory(memory, bytes, panel_bytes(k, n) + sums_bytes(n), say)) return status;
  uint8_t* const data = static_cast<uint8_t*>(memory);
  pack_panels({static_cast<const uint8_t*>(weights), k, n, row, column, type == QK_S8}, kPackedK,
              {0, ceil_div(n, kPanel)}, data, reinterpret_cast<int32_t*>(data + panel_bytes(k, n)));
  packed->k = k, packed->n = n, packed->type = type, packed->memory = memory;
  return QK_OK;
}

int32_t qk_conv_pack_bytes(const qk_conv_shape* shape, size_t* bytes, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (!bytes) return say(QK_NULL_POINTER, "bytes is NULL");
  ConvShape s;
  if (const int32_t status = check_weights(shape, s, say)) return status;
  const ConvLayout layout(s);
  *bytes = layout.data(s) + layout.sums(s);
  return QK_OK;
}

int32_t qk_conv_pack(const qk_conv_shape* shape, int32_t type, const void* weights, const int32_t* w_zero, void* memory,
                     size_t bytes, qk_packed_conv* packed, char* message, size_t message_bytes) {
  const Say say = say_to(message, message_bytes);
  if (const int32_t status = check_room(packed, "qk_packed_conv", say)) return status;
  if (!weights) return say(QK_NULL_POINTER, "weights is NULL");
  ConvShape s;
  if (const int32_t status = check_weights(shape, s, say)) return status;
  if (const int32_t status = check_type(type, say)) return status;
  const ConvLayout layout(s);
  if (const int32_t status = check_memory(memory, bytes, layout.data(s) + layout.sums(s), say)) return status;
  uint8_t* const data = static_cast<uint8_t*>(memory);
  int32_t* const sums = reinterpret_cast<int32_t*>(data + layout.data(s));
  const uint8_t* const from = static_cast<const uint8_t*>(weights);
  if (layout.depthwise) pack_depthwise(s, layout, from, type == QK_S8, data, sums);
  else pack_matrices(s, layout, from, w_zero, type == QK_S8, data, sums);
  packed->filters = s.filters, packed->channels = s.channels, packed->groups = s.groups;
  for (int axis = 0; axis < 3; ++axis) packed->kernel[axis] = s.kernel[axis];
  packed->type = type, packed->depthwise = layout.depthwise, packed->w_zero = w_zero, packed->memory = memory;
  return QK_OK;
}

}  // extern "C"
