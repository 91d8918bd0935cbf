// Python's door to the pools: arrays are checked here for memory safety, meaning is checked in Python.
#include "bind_pools.h"

#include <pybind11/stl.h>
#include <string.h>

#include "cpu/pooling.h"
#include "cpu/threads.h"
#include "require.h"
#include "views.h"

namespace py = pybind11;

namespace qk {
namespace {

py::list pool_rows() {
  py::list result;
  for (int i = 0; i < pool_count(); ++i) {
    const PoolRow& row = pool_row(i);
    py::dict one;
    one["op"] = row.op;
    one["types"] = row.types;
    one["isa"] = row.isa;
    one["ns"] = row.ns;
    one["runs_here"] = cpu_runs(row.isa);
    result.append(one);
  }
  return result;
}

using Pair = std::array<idx, 2>;

// (n, h, w, c) each, any strides; out of one byte an element, or int32 where that is what the row sums.
void pool(int index, const py::array& x, const Pair& kernel, const Pair& stride, const Pair& before,
          const Pair& dilation, const py::object& average, const py::array& out, int threads) {
  require(index >= 0 && index < pool_count(), "no such row");
  const PoolRow& row = pool_row(index);
  require(cpu_runs(row.isa), "this CPU cannot run that row");
  const View xv = view_of(x.ptr()), ov = view_of(out.ptr());
  const bool is_signed = row.types[0] == 's', sums = strcmp(row.op, "channel_sum") == 0;
  require(xv.dims == 4 && ov.dims == 4 && is_byte(xv, is_signed),
          "pool: x is not of the row's type, or has not 4 axes");
  require((sums ? is_int32(ov) && ov.aligned : is_byte(ov, is_signed)) && ov.writeable, "pool: out is not of its type");
  require(xv.shape[0] == ov.shape[0] && xv.shape[3] == ov.shape[3], "pool: out is not of x's images and channels");
  Pool p = {};
  p.x = xv.data, p.out = ov.data;
  for (int d = 0; d < 4; ++d) {
    require(xv.shape[d] > 0 && ov.shape[d] > 0, "pool: there is nothing to compute");
    p.x_step[d] = xv.strides[d], p.out_step[d] = ov.strides[d];
  }
  p.images = xv.shape[0], p.channels = xv.shape[3];
  for (int i = 0; i < 2; ++i) {
    require(kernel[i] > 0 && stride[i] > 0 && dilation[i] > 0 && before[i] >= 0, "pool: not a window");
    p.size[i] = xv.shape[1 + i], p.out_size[i] = ov.shape[1 + i];
    p.kernel[i] = kernel[i], p.stride[i] = stride[i], p.before[i] = before[i], p.dilation[i] = dilation[i];
  }
  require(!sums || (p.out_size[0] == 1 && p.out_size[1] == 1 && ov.strides[3] == 4), "pool: sums have one pixel");
  if (!average.is_none()) {
    const py::tuple by = average;
    require(by.size() == 5, "pool: not an Average");
    p.scale = py::cast<float>(by[0]), p.zero = py::cast<int32_t>(by[1]);
    p.out_scale = py::cast<float>(by[2]), p.out_zero = py::cast<int32_t>(by[3]);
    p.count_pads = py::cast<bool>(by[4]);
  }
  require((strcmp(row.op, "avg_pool") == 0) != average.is_none(), "pool: an Average goes with avg_pool");
  py::gil_scoped_release free_others;
  run(row, p, threads > 0 ? threads : num_threads(), threads > 0);
}

}  // namespace

void add_pools(PyObject* module) {
  auto m = py::reinterpret_borrow<py::module_>(module);
  m.def("pool_rows", &pool_rows, "Every pool of this build, as data.");
  m.def("pool", &pool, py::arg("row"), py::arg("x"), py::arg("kernel"), py::arg("stride"), py::arg("before"),
        py::arg("dilation"), py::arg("average"), py::arg("out"), py::arg("threads"),
        "Kernel.run of one row of max_pool, avg_pool or channel_sum. threads as of gemm.");
}

}  // namespace qk
