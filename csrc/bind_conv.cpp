// Python's door to convolutions. Sizes and pointers are checked here for memory safety; meaning is checked in Python.
#include "bind_conv.h"

#include "cpu/conv.h"
#include "cpu/threads.h"
#include "linear.h"
#include "views.h"

namespace py = pybind11;

namespace qk {
namespace {

void require(bool good, const char* what) {
  if (!good) throw py::value_error(what);
}

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

void conv(int index, const py::array& x, const py::array& data, const py::array& sums, idx matrices, bool w_signed,
          const py::tuple& geometry, const py::array& out, int x_zero, const py::tuple& by, int threads) {
  const RowList list = all_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  const KernelRow& row = list.rows[index];
  require(cpu_runs(row.isa) && w_signed == row.w_signed, "conv: not a row of this CPU, or of these types");
  ConvJob job = {};
  const ConvShape s = job.shape = shape_of(geometry);
  set_job(job, view_of(x.ptr()), x_zero, row.a_signed, by);
  require(matrices >= 1 && s.groups % matrices == 0, "conv: wrong number of matrices");
  const idx k = s.kernel[0] * s.kernel[1] * s.kernel[2] * (s.channels / matrices);
  const idx columns = matrices * padded(s.filters / matrices, kPanel);
  set_weights(job, data, sums, columns * padded(k, kPackedK), columns);
  job.matrices = matrices;
  std::vector<int32_t> zeros;
  const idx pixels = s.batch * s.out[0] * s.out[1] * s.out[2];
  const Epilogue e = epilogue_of(by, out, pixels, s.filters, false, zeros);
  require(!e.bias_row && !e.m_row && !e.a_scale_step, "conv: the epilogue differs by pixel");
  job.epilogue = &e;
  bool good;
  {
    py::gil_scoped_release free_others;
    good = threads > 0 ? run_conv(row, job, threads, true) : run_conv(row, job, num_threads(), false);
  }
  if (!good) throw std::bad_alloc();
}

void depthwise(int index, const py::array& x, const py::array& data, const py::array& sums, bool w_signed,
               const py::tuple& geometry, const py::array& out, int x_zero, const py::tuple& by, int threads) {
  const DepthwiseList list = depthwise_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  const DepthwiseRow& row = list.rows[index];
  require(cpu_runs(row.isa) && w_signed == row.w_signed, "conv: not a row of this CPU, or of these types");
  ConvJob job = {};
  const ConvShape s = job.shape = shape_of(geometry);
  require(s.groups == s.channels && s.filters == s.channels && s.size[0] == 1 && s.kernel[0] == 1 && s.out[0] == 1 &&
              s.before[0] == 0,
          "conv: not a depthwise convolution of flat images");
  set_job(job, view_of(x.ptr()), x_zero, row.a_signed, by);
  require(job.x_step[3] == s.channels || s.size[2] == 1, "conv: pixels of x are not adjacent");
  const idx groups = ceil_div(s.kernel[1], kGroup), rows = groups * kGroup - s.kernel[1] + 1;
  const idx columns = padded(s.channels, kPanel);
  set_weights(job, data, sums, rows * groups * s.kernel[2] * columns * kGroup, columns);
  std::vector<int32_t> zeros;
  const idx pixels = s.batch * s.out[0] * s.out[1] * s.out[2];
  const Epilogue e = epilogue_of(by, out, pixels, s.filters, false, zeros);
  require(!e.bias_row && !e.m_row && !e.a_scale_step, "conv: the epilogue differs by pixel");
  job.epilogue = &e;
  bool good;
  {
    py::gil_scoped_release free_others;
    good = threads > 0 ? run_depthwise(row, job, threads, true) : run_depthwise(row, job, num_threads(), false);
  }
  if (!good) throw std::bad_alloc();
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

void add_conv(py::module_& m) {
  m.def("conv", &conv, py::arg("row"), py::arg("x"), py::arg("data"), py::arg("sums"), py::arg("matrices"),
        py::arg("w_signed"), py::arg("geometry"), py::arg("out"), py::arg("x_zero"), py::arg("epilogue"),
        py::arg("threads") = 0, "Kernel.run of op \"conv\" on one row. threads as of gemm.");
  m.def("depthwise", &depthwise, py::arg("row"), py::arg("x"), py::arg("data"), py::arg("sums"), py::arg("w_signed"),
        py::arg("geometry"), py::arg("out"), py::arg("x_zero"), py::arg("epilogue"), py::arg("threads") = 0,
        "The same of a depthwise one, weights in layout c4t4.");
  m.def("depthwise_rows", &rows, "Every depthwise kernel of this build, as data.");
}

}  // namespace qk
