// Convolutions on AMX whose tiles of A are loaded from the image as it lies: no windows are copied side by side.
//
//   band      lines of the image with the zero point round them, copied once
//   tile of A 9 … 16 output pixels of one line: rows stride · channels bytes apart, each 64 bytes of a window
//   k         a kernel row's pixels are adjacent in the band: a run of steps of 64 bytes; then the next kernel row's
//
// 3×3 64@56 reads each byte of the image nine times: as windows side by side that is 1.8 MB to write and to read again,
// 70 of 113 µs. Here the tiles come from L1.
// Where a kernel row is far from a multiple of 64 bytes (few channels), up to four lines of the image lie side by side in
// each pixel of the band, [column][line][channel]: 7×7 of 3 channels is then 3 runs of 63 bytes, not 7 of 21. Weights
// are put into that order at every call, a pass over a few KB; what a run reads behind its window meets zeros there.
// Dilated columns are runs of their own.
// Why the rows of such a tile, which lie across cache lines, are not copied to lines of their own first: 7×7 s2 3-64@224
// takes as long (176 → 179 µs), 7×7 16-64@112 half as long again. Why the clamp is not moved to bytes and the bias not
// into the first sums (19 operations for 27 in the drain): no difference either.
// Why a tile does not go on into the next line (more rows in it, wrapped columns thrown away): 14 rows take 14 / 16 of a
// tile's time, and lines of 7 pixels have so few windows that their weights are what takes time.
#pragma once
#include "amx_drains.h"
#include "amx_strips.h"
#include "conv.h"

namespace qk {
namespace QK_ISA {
namespace {

constexpr uint32_t kNoTerms[2 * kTileRows] = {};  // of rows
constexpr idx kMostTogether = 4;                  // lines of an image in a pixel
constexpr idx kMostArranged = 256 << 10;          // bytes of weights in another order

// Output pixels of a tile: lines are divided evenly. 0 where that is not possible.
inline idx rows_of_tile(idx width) {
  for (idx tiles = ceil_div(width, kTileRows); tiles <= width; ++tiles)
    if (width % tiles == 0) return width / tiles > kTileRows / 2 ? width / tiles : 0;
  return 0;
}

// How a convolution is laid out. Bytes, unless it says lines, rows or columns.
struct ConvPlan {
  idx rows, together;         // of a tile: output pixels; lines of the image in a pixel of the band
  idx pixel, columns, line;   // of the band
  idx piece, steps, runs, k;  // of a run: bytes that count, steps
  bool arranged;              // weights are put into another order
  idx down, every;            // lines from the first to the last that an output line reads; which of them are needed
  idx lines, band_lines;      // of a band: output lines
  idx columns_block;          // of weights that stay in L2
  idx zeros, weights, from, at, sums, total;  // scratch, behind the band
};

inline idx run_bytes(const ConvShape& s, idx together) {
  return (s.dilation[2] == 1 ? s.kernel[2] : 1) * s.channels * together;
}

inline idx k_of(const ConvShape& s, idx together) {
  const idx runs = ceil_div(s.kernel[1], together) * (s.dilation[2] == 1 ? 1 : s.kernel[2]);
  return runs * padded(run_bytes(s, together), kTileK);
}

inline idx lines_together(const ConvShape& s) {
  idx best = 1;
  for (idx g = 2; g <= min_of(s.kernel[1], kMostTogether) && g * s.channels <= kTileK / 2; ++g)
    if (k_of(s, g) < k_of(s, best)) best = g;
  return best;
}

inline ConvPlan plan_of(const ConvJob& job) {
  const ConvShape& s = job.shape;
  ConvPlan p;
  p.rows = rows_of_tile(s.out[2]), p.together = lines_together(s);
  p.pixel = p.together * s.channels;
  p.piece = run_bytes(s, p.together), p.steps = ceil_div(p.piece, kTileK), p.k = k_of(s, p.together);
  p.runs = p.k / (p.steps * kTileK);
  p.arranged = p.together > 1 || p.piece % kTileK != 0;
  p.columns = (s.out[2] - 1) * s.stride[2] + (s.kernel[2] - 1) * s.dilation[2] + 1;
  p.line = padded(p.columns * p.pixel, 64) + 64;
  const idx apart = p.together * s.dilation[1];
  p.down = (ceil_div(s.kernel[1], p.together) - 1) * apart;
  p.every = p.down == 0 || apart % s.stride[1] == 0 ? s.stride[1] : 1;
  p.columns_block = max_of(job.l2_bytes * 5 / 8 / p.k / kPair * kPair, 2 * kPair);
  const idx room = job.l2_bytes / (p.columns_block < s.filters ? 4 : 16);
  p.lines = max_of((room / p.line * p.every - p.down - 1) / s.stride[1] + 1, 1);
  p.lines = min_of(p.lines, s.out[1]);
  p.band_lines = ((p.lines - 1) * s.stride[1] + p.down) / p.every + 1;
  const idx panels = ceil_div(s.filters, kPanel);
  p.zeros = p.band_lines * p.line;
  p.weights = padded(p.zeros + s.size[2] * s.channels, 64);
  p.from = p.weights + (p.arranged ? panels * kPanel * p.k : 0);
  p.at = p.from + (p.arranged ? p.k * 4 : 0);
  p.sums = padded(p.at + p.runs * idx(sizeof(idx)), 64);
  p.total = p.sums + 2 * kSumsSize * 4;
  return p;
}

// Lines of pixels of `channels` bytes → [pixel][line][channel], `together` lines. Up to 63 bytes behind are overwritten.
class Interleave {
 public:
  Interleave(idx together, idx channels)
      : together_(together), channels_(channels), at_once_(kTileK / (together * channels)) {
    uint8_t order[kTileK] = {}, *to = order;
    for (idx x = 0; x < at_once_; ++x)
      for (idx t = 0; t < together; ++t)
        for (idx c = 0; c < channels; ++c) *to++ = uint8_t(t * 32 + x * channels + c);
    order_ = _mm512_loadu_si512(order);
  }

  void operator()(const uint8_t* const* lines, idx pixels, uint8_t* to) const {
    const uint8_t *a = lines[0], *b = lines[1], *c = lines[together_ > 2 ? 2 : 0], *d = lines[together_ > 3 ? 3 : 0];
    const idx step = at_once_ * channels_;
    for (idx left = pixels * channels_; left > 0; left -= step, to += step * together_) {
      const __mmask32 mask = __mmask32((uint64_t(1) << min_of(step, left)) - 1);
      const __m512i low = two(mask, a, b), high = together_ > 2 ? two(mask, c, d) : low;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi8(low, order_, high));
      a += step, b += step, c += step, d += step;
    }
  }

 private:
  static __m512i two(__mmask32 mask, const uint8_t* p, const uint8_t* q) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi8(mask, p)),
                              _mm256_maskz_loadu_epi8(mask, q), 1);
  }

  idx together_, channels_, at_once_;
  __m512i order_;
};

// The band's line whose first line of the image is h (any of them may be outside).
inline void copy_line(const ConvJob& job, const ConvPlan& p, const Interleave& interleave, const uint8_t* image, idx h,
                      const uint8_t* zeros, uint8_t* to) {
  const ConvShape& s = job.shape;
  const idx before = s.before[2];
  const idx first = min_of(max_of(before, 0), p.columns);
  const idx last = max_of(min_of(s.size[2] + before, p.columns), first);
  const uint8_t* lines[kMostTogether];
  for (idx t = 0; t < p.together; ++t) {
    const idx at = h + t * s.dilation[1];
    const bool inside = at >= 0 && at < s.size[1];
    lines[t] = inside ? image + at * job.x_step[2] + (first - before) * s.channels : zeros;
  }
  memset(to, job.x_zero, size_t(first * p.pixel));
  if (p.together == 1) memcpy(to + first * p.pixel, lines[0], size_t((last - first) * p.pixel));
  else interleave(lines, last - first, to + first * p.pixel);
  memset(to + last * p.pixel, job.x_zero, size_t(p.line - last * p.pixel));
}

// Where each k of the runs is in job.w; −1: nowhere, its weights are zeros.
inline void find_weights(const ConvShape& s, const ConvPlan& p, int32_t* from) {
  const idx g = p.together, c = s.channels, columns = p.piece / p.pixel, run = p.steps * kTileK;
  for (idx i = 0; i < p.k; ++i) from[i] = -1;
  for (idx kh = 0; kh < s.kernel[1]; ++kh)
    for (idx kw = 0; kw < s.kernel[2]; ++kw) {
      const idx in_run = columns > 1 ? kw : 0, index = kh / g * (s.kernel[2] / columns) + (columns > 1 ? 0 : kw);
      int32_t* const to = from + index * run + in_run * p.pixel + kh % g * c;
      for (idx i = 0; i < c; ++i) to[i] = int32_t((kh * s.kernel[2] + kw) * c + i);
    }
}

inline void arrange_weights(const ConvJob& job, const ConvPlan& p, const int32_t* from, uint8_t* to) {
  const ConvShape& s = job.shape;
  const idx panel_bytes = padded(s.kernel[1] * s.kernel[2] * s.channels, kPackedK) * kPanel;
  for (idx panel = 0; panel < ceil_div(s.filters, kPanel); ++panel)
    for (idx k = 0; k < p.k; k += kGroup, to += kPanel * kGroup) {
      uint32_t quads[kPanel] = {};
      for (idx t = 0; t < kGroup; ++t) {
        if (from[k + t] < 0) continue;
        uint32_t found[kPanel];
        memcpy(found, job.w + panel * panel_bytes + from[k + t] / kGroup * kPanel * kGroup, sizeof found);
        const unsigned down = unsigned(from[k + t] % kGroup * 8), up = unsigned(t * 8);
        for (idx j = 0; j < kPanel; ++j) quads[j] |= (found[j] >> down & 255u) << up;
      }
      memcpy(to, quads, sizeof quads);
    }
}

template <bool ASigned, bool WSigned, class Drain>
class ConvStrips {
 public:
  // Output lines of all images, one below the other.
  static void run(const ConvJob& job, Range lines, void* scratch) {
    Gemm g = {};
    g.epilogue = job.epilogue, g.n = job.shape.filters;
    ConvStrips work(job, g, static_cast<uint8_t*>(scratch));
    const idx height = job.shape.out[1];
    for (idx at = lines.begin; at < lines.end;) {
      const idx image = at / height, end = min_of(min_of((image + 1) * height, lines.end), at + work.p_.lines);
      work.copy(image, at % height, end - at);
      work.multiply(at * job.shape.out[2], end - at);
      at = end;
    }
    work.pipe_.flush();
    _tile_release();
  }

 private:
  ConvStrips(const ConvJob& job, const Gemm& g, uint8_t* scratch)
      : job_(job),
        p_(plan_of(job)),
        interleave_(p_.together, job.shape.channels),
        band_(scratch),
        drain_(g),
        pipe_(drain_) {
    const ConvShape& s = job.shape;
    memset(scratch + p_.zeros, job.x_zero, size_t(s.size[2] * s.channels));
    w_ = job.w;
    if (p_.arranged) {
      int32_t* const from = reinterpret_cast<int32_t*>(scratch + p_.from);
      find_weights(s, p_, from);
      arrange_weights(job, p_, from, scratch + p_.weights);
      w_ = scratch + p_.weights;
    }
    idx* const at = reinterpret_cast<idx*>(scratch + p_.at);
    const idx across = s.dilation[2] == 1 ? 1 : s.kernel[2];
    for (idx r = 0; r < p_.runs; ++r)
      at[r] = r / across * p_.together * s.dilation[1] / p_.every * p_.line + r % across * s.dilation[2] * p_.pixel;
    pipe_.runs = at, pipe_.run_count = p_.runs;
    sums_ = reinterpret_cast<int32_t*>(scratch + p_.sums) + kPanel;
  }

  // The band of `count` output lines from `line` on.
  void copy(idx image, idx line, idx count) {
    const ConvShape& s = job_.shape;
    const idx top = line * s.stride[1] - s.before[1], needed = ((count - 1) * s.stride[1] + p_.down) / p_.every + 1;
    for (idx i = 0; i < needed; ++i)
      copy_line(job_, p_, interleave_, job_.x + image * job_.x_step[0], top + i * p_.every, band_ + p_.zeros,
                band_ + i * p_.line);
  }

  const uint8_t* tile(idx index) const {
    const ConvShape& s = job_.shape;
    const idx across = s.out[2] / p_.rows;
    return band_ + index / across * s.stride[1] / p_.every * p_.line +
           index % across * p_.rows * s.stride[2] * p_.pixel;
  }

  // Two tiles of output pixels, then the next two, past a block of weights that stays in L2; `first`: the first pixel.
  void multiply(idx first, idx count) {
    const idx tiles = count * (job_.shape.out[2] / p_.rows), n = job_.shape.filters, panel = p_.k * kPanel;
    for (idx n0 = 0; n0 < n; n0 += p_.columns_block) {
      const idx end = min_of(n0 + p_.columns_block, n), next = min_of(end + p_.columns_block, n);
      const idx pairs = ceil_div(end - n0, kPair);
      ahead_.over(w_ + end / kPanel * panel, ceil_div(next - end, kPanel) * panel,
                  ceil_div(tiles, 2) * pairs * p_.steps * p_.runs);
      pipe_.ahead = &ahead_;
      for (idx t = 0; t < tiles; t += 2) {
        const bool both = t + 1 < tiles;
        pipe_.shape(both ? 2 * p_.rows : p_.rows, n > kPanel ? 2 : 1);
        pipe_.apart = both ? tile(t + 1) - tile(t) : 0;
        strip(first + t * p_.rows, tile(t), {n0, end});
      }
    }
  }

  void strip(idx pixel, const uint8_t* a, Range n) {
    const idx panel = p_.k * kPanel;
    for (idx j = n.begin; j < n.end; j += kPair) {
      TileJob& t = pipe_.job();
      t.i = pixel, t.j = j, t.cols = min_of(kPair, n.end - j);
      t.begins = j == n.begin, t.ends = j + kPair >= n.end;
      t.zero = t.sum = kNoTerms, t.next = sums_;
      pipe_.multiply(a, kTileK, job_.shape.stride[2] * p_.pixel, w_ + j / kPanel * panel, t.cols > kPanel ? panel : 0,
                     p_.steps, sums_, false, true);
    }
  }

  const ConvJob& job_;
  const ConvPlan p_;
  const Interleave interleave_;
  uint8_t* const band_;
  const uint8_t* w_;
  int32_t* sums_;
  Drain drain_;
  AmxPipe<ASigned, WSigned, Drain> pipe_;
  Ahead ahead_;
};

template <bool ASigned, bool WSigned>
struct DirectConv {
  // k grows by no more than half, and so do the weights that a thread may have to put into another order.
  static bool takes_shape(const ConvShape& s) {
    const idx taps = s.kernel[1] * s.kernel[2], k = k_of(s, lines_together(s));
    return is_flat(s) && s.groups == 1 && taps > 1 && rows_of_tile(s.out[2]) > 0 &&
           k * 2 <= padded(taps * s.channels, kPackedK) * 3 &&
           (s.channels % kTileK == 0 || padded(s.filters, kPanel) * k <= kMostArranged);
  }

  static bool takes(const ConvJob& job) {
    return takes_shape(job.shape) && !job.w_zero && job.x_step[3] == job.shape.channels;
  }

  static size_t scratch_bytes(const ConvJob& job) { return takes_shape(job.shape) ? size_t(plan_of(job).total) : 0; }

  static void block(const ConvJob& job, Range lines, void* scratch) {
    if (ToReal<>::takes(*job.epilogue)) ConvStrips<ASigned, WSigned, ToReal<>>::run(job, lines, scratch);
    else if (job.epilogue->type == Written::u8)
      ConvStrips<ASigned, WSigned, ToCodes<uint8_t>>::run(job, lines, scratch);
    else ConvStrips<ASigned, WSigned, ToCodes<int8_t>>::run(job, lines, scratch);
  }
};

}  // namespace
}  // namespace QK_ISA
}  // namespace qk
