// Convolutions, as Python calls them.
#include <string>

#include "bind.h"
#include "conv_rows.h"
#include "device.h"

namespace qk::cuda {
namespace {

void check(const ConvRow& row, const Conv& c, int device) {
  const int arch = architecture(device);
  const Image& m = c.image;
  const std::string kind = row.kind;
  require(arch >= row.first_arch && arch <= row.last_arch, "conv: this GPU cannot run that row");
  for (int size : {m.batch, m.height, m.width, m.channels, m.filters, m.groups, m.kernel_h, m.kernel_w, m.stride_h,
                   m.stride_w, m.dilation_h, m.dilation_w, m.out_h, m.out_w})
    require(size > 0, "conv: a size is out of range");
  require(m.channels % m.groups == 0 && m.filters % m.groups == 0 && m.groups < 65536, "conv: the groups");
  const int64_t depth = m.channels / m.groups, k = depth * m.kernel_h * m.kernel_w;
  require(k < int64_t(1) << 30 && int64_t(m.height) * m.width * m.channels < int64_t(1) << 31, "conv: too large");
  require(int64_t(m.out_h) * m.out_w < int64_t(1) << 31, "conv: too large");
  const auto aligned = [](const void* p) { return p && reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  require(aligned(c.x) && aligned(c.w) && aligned(c.pad), "conv: operands must be aligned to 16 bytes");
  if (kind == "depthwise") require(depth == 1 && m.filters == m.groups, "conv: not depthwise");
  else require(c.w_pitch % 16 == 0 && c.w_pitch >= k, "conv: the pitch of the weights");
  if (kind == "chunks") require(depth % 16 == 0, "conv: channels of a group are no multiple of 16");
  const Epilogue& e = c.epilogue;
  const int64_t pixels = int64_t(m.batch) * m.out_h * m.out_w;
  require(e.m == pixels && e.n == m.filters && e.k == k && e.out && e.output <= kU16,
          "conv: the epilogue does not fit");
  require(!e.residual || (e.residual_type >= kF32 && e.residual_type <= kU8), "conv: the type of the residual");
  require(!e.a_zero && !e.w_zero, "conv: zero points of the weights, or of single rows");
  require(e.output == kS32 || (e.a_scale && e.w_scale) || (e.output >= kS8 && e.m_values), "conv: no scales");
}

void convolve(int index, const Conv& c, uintptr_t stream, int device) {
  if (index < 0 || index >= kConvRowCount) throw py::index_error("no such row");
  check(kConvRows[index], c, device);
  const OnDevice there(device);
  kConvRows[index].run(c, reinterpret_cast<Stream>(stream));
}

py::list rows() {
  py::list result;
  for (const ConvRow& row : kConvRows) {
    py::dict one;
    one["tile"] = row.tile, one["isa"] = row.isa, one["kind"] = row.kind;
    one["first_arch"] = row.first_arch, one["last_arch"] = row.last_arch;
    result.append(one);
  }
  return result;
}

}  // namespace

void bind_conv(py::module_& m) {
  auto bound = py::class_<Conv>(m, "Conv").def(py::init([] { return Conv{}; }));
  QK_POINTER(Conv, x);
  QK_POINTER(Conv, w);
  QK_NUMBER(Conv, w_pitch);
  QK_POINTER(Conv, pad);
  QK_NUMBER(Conv, x_signed);
  QK_NUMBER(Conv, w_signed);
  QK_NUMBER(Conv, epilogue);
  bound.def_readwrite("image", &Conv::image);
  auto image = py::class_<Image>(m, "Image").def(py::init([] { return Image{}; }));
#define QK_SIZE(name) image.def_readwrite(#name, &Image::name)
  QK_SIZE(batch), QK_SIZE(height), QK_SIZE(width), QK_SIZE(channels), QK_SIZE(filters), QK_SIZE(groups);
  QK_SIZE(kernel_h), QK_SIZE(kernel_w), QK_SIZE(stride_h), QK_SIZE(stride_w), QK_SIZE(dilation_h), QK_SIZE(dilation_w);
  QK_SIZE(before_h), QK_SIZE(before_w), QK_SIZE(out_h), QK_SIZE(out_w);
#undef QK_SIZE
  m.def("conv_rows", &rows, "Every convolution of this build, as data.");
  m.def("conv", &convolve, py::arg("row"), py::arg("conv"), py::arg("stream"), py::arg("device"),
        "One of them. Nothing waits for the device.");
}

}  // namespace qk::cuda
