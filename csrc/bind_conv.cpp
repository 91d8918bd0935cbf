// Python's door to convolutions. Sizes and pointers are checked here for memory safety; meaning is checked in Python.
#include "bind_conv.h"

#include <memory>

#include "cpu/conv.h"
#include "cpu/threads.h"
#include "linear.h"
#include "require.h"
#include "views.h"

namespace py = pybind11;

namespace qk {
namespace {

constexpr idx kMost = idx(1) << 31;  // of every number of a geometry: no index can overflow

// (batch, size, channels, filters, kernel, stride, dilation, before, out, groups), triples where there are three
ConvShape shape_of(const py::tuple& t) {
  require(t.size() == 10, "conv: a geometry has 10 fields");
  const auto one = [&](size_t i, idx least) {
    const idx value = t[i].cast<idx>();
    require(value >= least && value < kMost, "conv: a number of the geometry is out of range");
    return value;
  };
  const auto three = [&](size_t i, idx least, idx* to) {
    const py::tuple v = t[i].cast<py::tuple>();
    require(v.size() == 3, "conv: an axis is missing");
    for (size_t axis = 0; axis < 3; ++axis) {
      to[axis] = v[axis].cast<idx>();
      require(to[axis] >= least && to[axis] < kMost, "conv: a number of the geometry is out of range");
    }
  };
  ConvShape s;
  s.batch = one(0, 1), s.channels = one(2, 1), s.filters = one(3, 1), s.groups = one(9, 1);
  three(1, 1, s.size), three(4, 1, s.kernel), three(5, 1, s.stride), three(6, 1, s.dilation);
  three(7, -kMost, s.before), three(8, 1, s.out);
  require(s.channels % s.groups == 0 && s.filters % s.groups == 0, "conv: groups do not divide");
  return s;
}

bool is_image(const View& v, const ConvShape& s, const idx* size, idx channels, idx bytes) {
  return v.dims == 5 && v.shape[0] == s.batch && v.shape[1] == size[0] && v.shape[2] == size[1] &&
         v.shape[3] == size[2] && v.shape[4] == channels && (v.strides[4] == bytes || channels == 1);
}

// What both kinds have in common; job.w and job.w_sums are the caller's.
void set_job(ConvJob& job, const View& x, int x_zero, bool x_signed, const py::tuple& by) {
  const ConvShape& s = job.shape;
  require(is_byte(x, x_signed) && is_image(x, s, s.size, s.channels, 1),
          "conv: x does not fit the row or the geometry");
  require(x_signed ? x_zero >= -128 && x_zero < 128 : x_zero >= 0 && x_zero < 256, "conv: x_zero is no code");
  require(by.size() > 2 && by[1].is_none(), "conv: the epilogue has zero points of pixels");
  for (int d = 0; d < 4; ++d) job.x_step[d] = x.strides[d];
  if (!by[2].is_none()) {
    const View z = view_of(by[2].ptr());
    require(z.dims == 1 && is_int32(z) && z.aligned && (z.strides[0] == 4 || s.filters == 1) && z.shape[0] == s.filters,
            "conv: w_zero does not fit");
    job.w_zero = reinterpret_cast<const int32_t*>(z.data);
  }
  job.x = x.data, job.x_zero = x_zero;
  Gemm caches = {};
  set_caches(caches);
  job.l1_bytes = caches.l1_bytes, job.l2_bytes = caches.l2_bytes;
}

void set_weights(ConvJob& job, const py::array& data, const py::array& sums, idx bytes, idx columns) {
  const View d = view_of(data.ptr()), s = view_of(sums.ptr());
  require(d.dims == 1 && is_byte(d, false) && d.strides[0] == 1 && d.shape[0] == bytes,
          "conv: packed weights have the wrong size");
  require(s.dims == 1 && is_int32(s) && s.aligned && s.strides[0] == 4 && s.shape[0] == columns,
          "conv: sums of weights have the wrong size");
  job.w = d.data, job.w_sums = reinterpret_cast<const int32_t*>(s.data);
}

}  // namespace

// A convolution of which everything is known but where the image and the result lie.
struct ConvReady {
  ConvJob job = {};
  Epilogue epilogue = {};
  std::vector<int32_t> zeros;
  const KernelRow* product = nullptr;  // one of the two
  const DepthwiseRow* depthwise = nullptr;
  idx x_bytes = 0, out_bytes = 0;
  int threads = 0;
  py::tuple keep;  // the arrays that job and epilogue point into
};

// The call may run on several threads at once, each with an image of its own.
bool run_conv_ready(const ConvReady& r, const void* x, void* out, const void* residual) {
  ConvJob job = r.job;
  Epilogue epilogue = r.epilogue;
  job.x = static_cast<const uint8_t*>(x), job.epilogue = &epilogue;
  epilogue.out = out;
  if (residual) epilogue.residual = residual;
  const bool forced = r.threads > 0;
  const int most = forced ? r.threads : num_threads();
  return r.product ? run_conv(*r.product, job, most, forced) : run_depthwise(*r.depthwise, job, most, forced);
}

namespace {

using Ready = ConvReady;

void run(const Ready& r, const void* x, void* out, const void* residual) {
  bool good;
  {
    py::gil_scoped_release free_others;
    good = run_conv_ready(r, x, out, residual);
  }
  if (!good) throw std::bad_alloc();
}

void set_epilogue(Ready& r, const py::tuple& by, const py::array& out) {
  const ConvShape& s = r.job.shape;
  r.epilogue = epilogue_of(by, out, s.batch * s.out[0] * s.out[1] * s.out[2], s.filters, false, r.zeros);
  const Epilogue& e = r.epilogue;
  require(!e.bias_row && !e.m_row && !e.a_scale_step, "conv: the epilogue differs by pixel");
  r.x_bytes = s.batch * s.size[0] * s.size[1] * s.size[2] * s.channels;
  r.out_bytes = out.nbytes();
}

void set_product(Ready& r, int index, const py::array& x, const py::array& data, const py::array& sums, idx matrices,
                 bool w_signed, const py::tuple& geometry, int x_zero, const py::tuple& by) {
  const RowList list = all_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  const KernelRow& row = *(r.product = &list.rows[index]);
  require(cpu_runs(row.isa) && w_signed == row.w_signed, "conv: not a row of this CPU, or of these types");
  const ConvShape s = r.job.shape = shape_of(geometry);
  set_job(r.job, view_of(x.ptr()), x_zero, row.a_signed, by);
  require(matrices >= 1 && s.groups % matrices == 0, "conv: wrong number of matrices");
  const idx k = s.kernel[0] * s.kernel[1] * s.kernel[2] * (s.channels / matrices);
  const idx columns = matrices * padded(s.filters / matrices, kPanel);
  set_weights(r.job, data, sums, columns * padded(k, kPackedK), columns);
  r.job.matrices = matrices;
}

void set_depthwise(Ready& r, int index, const py::array& x, const py::array& data, const py::array& sums, bool w_signed,
                   const py::tuple& geometry, int x_zero, const py::tuple& by) {
  const DepthwiseList list = depthwise_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  const DepthwiseRow& row = *(r.depthwise = &list.rows[index]);
  require(cpu_runs(row.isa) && w_signed == row.w_signed, "conv: not a row of this CPU, or of these types");
  const ConvShape s = r.job.shape = shape_of(geometry);
  require(s.groups == s.channels && s.filters == s.channels && s.size[0] == 1 && s.kernel[0] == 1 && s.out[0] == 1 &&
              s.before[0] == 0,
          "conv: not a depthwise convolution of flat images");
  set_job(r.job, view_of(x.ptr()), x_zero, row.a_signed, by);
  require(r.job.x_step[3] == s.channels || s.size[2] == 1, "conv: pixels of x are not adjacent");
  const idx groups = ceil_div(s.kernel[1], kGroup), rows = groups * kGroup - s.kernel[1] + 1;
  const idx columns = padded(s.channels, kPanel);
  set_weights(r.job, data, sums, rows * groups * s.kernel[2] * columns * kGroup, columns);
}

void conv(int index, const py::array& x, const py::array& data, const py::array& sums, idx matrices, bool w_signed,
          const py::tuple& geometry, const py::array& out, int x_zero, const py::tuple& by, int threads) {
  Ready r;
  set_product(r, index, x, data, sums, matrices, w_signed, geometry, x_zero, by);
  set_epilogue(r, by, out);
  r.threads = threads;
  run(r, r.job.x, r.epilogue.out, nullptr);
}

void depthwise(int index, const py::array& x, const py::array& data, const py::array& sums, bool w_signed,
               const py::tuple& geometry, const py::array& out, int x_zero, const py::tuple& by, int threads) {
  Ready r;
  set_depthwise(r, index, x, data, sums, w_signed, geometry, x_zero, by);
  set_epilogue(r, by, out);
  r.threads = threads;
  run(r, r.job.x, r.epilogue.out, nullptr);
}

constexpr const char* kReadyName = "qkernels.conv";

py::capsule ready(bool is_depthwise, int index, const py::array& x, const py::array& data, const py::array& sums,
                  idx matrices, bool w_signed, const py::tuple& geometry, const py::array& out, int x_zero,
                  const py::tuple& by) {
  auto r = std::make_unique<Ready>();
  if (is_depthwise) set_depthwise(*r, index, x, data, sums, w_signed, geometry, x_zero, by);
  else set_product(*r, index, x, data, sums, matrices, w_signed, geometry, x_zero, by);
  set_epilogue(*r, by, out);
  require(r->epilogue.residual_type != Residual::f32, "conv: the residual of a call made ready is of codes");
  const ConvShape& s = r->job.shape;
  r->job.x_step[3] = s.channels, r->job.x_step[2] = s.size[2] * s.channels;
  r->job.x_step[1] = s.size[1] * r->job.x_step[2], r->job.x_step[0] = s.size[0] * r->job.x_step[1];
  r->keep = py::make_tuple(data, sums, by);
  return py::capsule(r.release(), kReadyName,
                     [](PyObject* self) { delete static_cast<Ready*>(PyCapsule_GetPointer(self, kReadyName)); });
}

// The residual of this call, adjacent codes of the type that was said.
const void* residual_of(const Ready& r, const py::object& residual) {
  const Epilogue& e = r.epilogue;
  require(residual.is_none() == (e.residual_type == Residual::none), "conv: a residual was said, or was not");
  if (residual.is_none()) return nullptr;
  require(py::isinstance<py::array>(residual), "conv: residual is no array");
  const py::array codes = py::reinterpret_borrow<py::array>(residual);
  const ConvShape& s = r.job.shape;
  require(is_byte(view_of(codes.ptr()), e.residual_type == Residual::s8) && (codes.flags() & py::array::c_style) &&
              codes.nbytes() == s.batch * s.out[0] * s.out[1] * s.out[2] * s.filters,
          "conv: residual is another than was said");
  return codes.data();
}

void again(const py::capsule& capsule, const py::array& x, const py::array& out, const py::object& residual) {
  const Ready* const found = conv_ready_of(capsule.ptr());
  require(found, "conv: not what `conv_ready` made");
  const Ready& r = *found;
  const bool is_signed = r.product ? r.product->a_signed : r.depthwise->a_signed;
  require(is_byte(view_of(x.ptr()), is_signed) && (x.flags() & py::array::c_style) && x.nbytes() == r.x_bytes,
          "conv: x is another than was said");
  require((out.flags() & py::array::c_style) && out.writeable() && out.nbytes() == r.out_bytes &&
              view_of(out.ptr()).aligned,
          "conv: out is another than was said");
  run(r, x.data(), const_cast<void*>(out.data()), residual_of(r, residual));
}

py::list rows() {
  py::list result;
  const DepthwiseList list = depthwise_rows();
  for (int i = 0; i < list.count; ++i) {
    const DepthwiseRow& row = list.rows[i];
    py::dict one;
    one["name"] = row.name, one["types"] = row.types, one["isa"] = row.isa, one["gops"] = row.gops;
    result.append(one);
  }
  return result;
}

}  // namespace

const ConvReady* conv_ready_of(PyObject* capsule) {
  return PyCapsule_IsValid(capsule, kReadyName)
             ? static_cast<const ConvReady*>(PyCapsule_GetPointer(capsule, kReadyName))
             : nullptr;
}

void add_conv(py::module_& m) {
  m.def("conv", &conv, py::arg("row"), py::arg("x"), py::arg("data"), py::arg("sums"), py::arg("matrices"),
        py::arg("w_signed"), py::arg("geometry"), py::arg("out"), py::arg("x_zero"), py::arg("epilogue"),
        py::arg("threads") = 0, "Kernel.run of op \"conv\" on one row. threads as of gemm.");
  m.def("depthwise", &depthwise, py::arg("row"), py::arg("x"), py::arg("data"), py::arg("sums"), py::arg("w_signed"),
        py::arg("geometry"), py::arg("out"), py::arg("x_zero"), py::arg("epilogue"), py::arg("threads") = 0,
        "The same of a depthwise one, weights in layout c4t4.");
  m.def("conv_ready", &ready, py::arg("is_depthwise"), py::arg("row"), py::arg("x"), py::arg("data"), py::arg("sums"),
        py::arg("matrices"), py::arg("w_signed"), py::arg("geometry"), py::arg("out"), py::arg("x_zero"),
        py::arg("epilogue"), "Either of them, checked but not run; for `conv_again`.");
  m.def("conv_again", &again, py::arg("ready"), py::arg("x"), py::arg("out"), py::arg("residual") = py::none(),
        "The same convolution of another image, C contiguous, into another result; of another residual if it had one.");
  m.def("depthwise_rows", &rows, "Every depthwise kernel of this build, as data.");
}

}  // namespace qk
