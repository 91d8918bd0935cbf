// Convolutions of small groups without a matrix product: a filter in each lane, four channels of its group in the bytes.
//
//   a pixel, groups of 4          c0 c1 c2 c3 | c4 …                spread once for all taps that read the pixel:
//   a vector of 16 filters        the dword of its group in every lane: one permutation for 16 filters and 4 channels
//
// From there it is a depthwise convolution whose quads are channels, not taps of a column: depthwise_codes.h sums over
// kernel rows, and over kernel columns times the quads of a group. Spread rows lie in a ring; a strip of columns goes down
// the image, so that each row is spread once: 230 → 146 µs at 3×3, 32 groups, 128@56, for 371 as a product.
// `D` is that of depthwise.h with a Spread(filters, quads, quad, bytes), called with (pixel, its dwords).
// Why not the product with merged groups: of its block-diagonal weights three quarters are zeros at 4 channels a group,
// and its windows are gathered for every merged group.
// Weights come as n16k4; the dwords of a filter's own group are picked out of the merged ones at every call.
#pragma once
#include <string.h>

#include "depthwise.h"

namespace qk {
namespace QK_ISA {
namespace {

template <class D>
struct Grouped {
  static constexpr idx kSpreadBytes = 24 << 10;  // of a segment: what leaves room in L1
  static constexpr idx kMostDepth = 8;           // with 16 channels a group the product on AMX takes 40 % of this

  struct Plan {
    idx depth, per, quads, pixel, pixels, columns;  // of a group: channels, filters, quads; bytes of a spread pixel
    idx rings, ring;                                // turns of the kernel rows, bytes of the records of one
    idx weights, start, records, total;             // scratch
  };

  static Plan plan(const ConvJob& job) {
    const ConvShape& s = job.shape;
    Plan p;
    p.depth = s.channels / s.groups, p.per = s.filters / s.groups;
    p.quads = p.depth / kGroup;
    p.pixel = p.quads * s.filters * kGroup;
    const idx reach = (s.kernel[2] - 1) * s.dilation[2] + 1;
    const idx fits = kSpreadBytes / (s.kernel[1] * p.pixel);
    p.pixels = min_of(max_of((fits - reach) / s.stride[2] + 1, 4), s.out[2]);
    p.columns = (p.pixels - 1) * s.stride[2] + reach;
    p.weights = s.kernel[1] * p.columns * p.pixel;  // behind the ring of spread rows
    p.start = p.weights + s.kernel[1] * s.kernel[2] * p.pixel;
    p.records = padded(p.start + s.filters * 4, 64);
    p.rings = s.dilation[1] == 1 ? s.kernel[1] : 1;
    p.ring = s.filters * kGroup * (2 + s.kernel[1] * s.kernel[2] * p.quads);
    p.total = p.records + (p.rings + 1) * p.ring;
    return p;
  }

  static bool is_small(const ConvShape& s) {
    const idx depth = s.channels / s.groups;
    return is_flat(s) && s.groups > 1 && depth % kGroup == 0 && depth <= kMostDepth;
  }

  static size_t scratch_bytes(const ConvJob& job) { return is_small(job.shape) ? size_t(plan(job).total) : 0; }

  static bool takes(const ConvJob& job) {
    const ConvShape& s = job.shape;
    const idx depth = s.channels / s.groups, per = s.filters / s.groups;
    const idx together = per < D::kChannels ? D::kChannels / per : 1;  // groups of a vector
    return is_small(s) && together * depth <= 64 && !job.w_zero &&
           (D::kChannels % per == 0 || per % D::kChannels == 0) && s.filters / job.matrices % kPanel == 0 &&
           (s.dilation[2] == 1 || depth == kGroup) &&
           finishes<D>(*job.epilogue, 1, s.filters, min_of(plan(job).pixels, s.out[2]));
  }

  // [tap][quad][filter] dwords of n16k4 with merged groups.
  static void pick(const ConvJob& job, const Plan& p, uint8_t* to) {
    const ConvShape& s = job.shape;
    const idx taps = s.kernel[1] * s.kernel[2], of_matrix = s.filters / job.matrices;
    const idx channels = s.channels / job.matrices, whole = padded(taps * channels, kPackedK);
    for (idx tap = 0; tap < taps; ++tap)
      for (idx d = 0; d < p.quads; ++d)
        for (idx f = 0; f < s.filters; ++f, to += kGroup) {
          const idx column = f % of_matrix, k = tap * channels + column / p.per * p.depth + d * kGroup;
          const uint8_t* const panel = job.w + (f / of_matrix * of_matrix + column / kPanel * kPanel) * whole;
          memcpy(to, panel + k * kPanel + column % kPanel * kGroup, kGroup);
        }
  }

  // Columns left … of image row h, each as its quads for all filters.
  static void spread(const ConvJob& job, const Plan& p, const uint8_t* image, idx h, idx left, uint8_t* dst) {
    const ConvShape& s = job.shape;
    const int outside = uint8_t(job.x_zero ^ int(D::kFlip));
    const bool inside = h >= 0 && h < s.size[1];
    const idx first = inside ? min_of(max_of(-left, 0), p.columns) : p.columns;
    const idx last = inside ? max_of(min_of(s.size[2] - left, p.columns), first) : p.columns;
    memset(dst, outside, size_t(first * p.pixel));
    memset(dst + last * p.pixel, outside, size_t((p.columns - last) * p.pixel));
    if (!inside) return;
    const idx together = max_of(D::kChannels / p.per, 1), each = max_of(p.per / D::kChannels, 1);  // groups, vectors
    const idx bytes = together * p.depth, blocks = s.groups / together;
    for (idx d = 0; d < p.quads; ++d) {
      const typename D::Spread by(p.per, p.quads, d, bytes);
      const uint8_t* pixel = image + h * job.x_step[2] + (left + first) * job.x_step[3];
      uint8_t* to = dst + first * p.pixel + d * s.filters * kGroup;
      for (idx i = first; i < last; ++i, pixel += job.x_step[3], to += p.pixel) {
        uint8_t* vector = to;
        for (idx b = 0; b < blocks; ++b)
          for (idx v = 0; v < each; ++v, vector += D::kChannels * kGroup) by(pixel + b * bytes, vector);
      }
    }
  }

  // The weights of kernel row t where `top` more rows of the image have passed: rows lie in a ring.
  static void write_rings(const ConvJob& job, const Plan& p, const QuadSteps& steps, const uint8_t* w,
                          const int32_t* start, uint8_t* records) {
    const ConvShape& s = job.shape;
    const idx bytes = p.pixel * s.kernel[2];  // of a kernel row
    uint8_t* const turned = records + p.rings * p.ring;
    for (idx r = 0; r < p.rings; ++r, records += p.ring) {
      for (idx t = 0; t < s.kernel[1]; ++t)
        memcpy(turned + (t + r) % s.kernel[1] * bytes, w + t * bytes, size_t(bytes));
      write_records<Lanes>(steps, turned, start, job.epilogue->m, 1, s.filters, records);
    }
  }

  // Output rows lines.begin … of all images, one below the other: in strips of columns, so that an image row is spread
  // once for all kernel rows that read it.
  static void block(const ConvJob& job, Range lines, void* scratch) {
    const ConvShape& s = job.shape;
    const Plan p = plan(job);
    uint8_t *const at = static_cast<uint8_t*>(scratch), *const w = at + p.weights, *const records = at + p.records;
    int32_t* const start = reinterpret_cast<int32_t*>(at + p.start);
    Epilogue rest = *job.epilogue;
    for (idx f = 0; f < s.filters; ++f)
      start[f] = int32_t(uint32_t(rest.bias ? rest.bias[f] : 0) - uint32_t(D::kShift) * uint32_t(job.w_sums[f]));
    rest.bias = nullptr;
    pick(job, p, w);
    const idx quad = s.filters * kGroup, row = p.columns * p.pixel;
    const QuadSteps steps = {s.stride[2] * p.pixel,
                             p.quads > 1 ? quad : s.dilation[2] * p.pixel,
                             row,
                             quad,
                             s.kernel[2] * p.pixel,
                             0,
                             s.kernel[1],
                             s.kernel[2] * p.quads,
                             0,
                             0};
    write_rings(job, p, steps, w, start, records);
    for (idx from = lines.begin; from < lines.end;) {
      const idx image = from / s.out[1], end = min_of((image + 1) * s.out[1], lines.end);
      for (idx x = 0; x < s.out[2]; x += p.pixels) {
        x = max_of(min_of(x, s.out[2] - p.pixels), 0);  // the last strip overlaps the one before
        idx next = 0;                                   // the image row that is spread next, from the first one's top
        for (idx line = from; line < end; ++line) {
          const idx passed = (line - from) * s.stride[1], top = line % s.out[1] * s.stride[1] - s.before[1];
          if (p.rings == 1) next = 0;
          for (idx t = p.rings == 1 ? 0 : max_of(next - passed, 0); t < s.kernel[1]; ++t)
            spread(job, p, job.x + image * job.x_step[0], top + t * s.dilation[1], x * s.stride[2] - s.before[2],
                   at + (p.rings == 1 ? t : (passed + t) % p.rings) * row);
          next = passed + s.kernel[1];
          const idx turn = p.rings == 1 ? 0 : passed % p.rings;
          finish_segment<D>(rest, steps, {at, records + turn * p.ring, line, x, 1, p.pixels, s.out[2], s.filters});
        }
      }
      from = end;
    }
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
