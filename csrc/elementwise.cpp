// Python's door to the elementwise kernels: rows, and one function for each shape of arguments. Arrays are checked here
// for memory safety, meaning is checked in Python. The GIL is released where the work is worth it.
#include "elementwise_door.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string.h>

#include "cpu/elements.h"
#include "cpu/features.h"
#include "cpu/threads.h"
#include "require.h"

namespace py = pybind11;

namespace qk {
namespace {

constexpr idx kReleaseElements = 1 << 14;  // smaller jobs end before another thread could have begun

py::list elementwise_rows() {
  py::list result;
  for (int i = 0; i < elementwise_count(); ++i) {
    const ElementwiseRow& row = elementwise_row(i);
    py::dict one;
    one["op"] = row.op;
    one["types"] = row.types;
    one["isa"] = row.isa;
    one["ns"] = row.ns;
    one["bytes"] = row.in_bytes + row.out_bytes;
    one["runs_here"] = cpu_runs(row.isa);
    result.append(one);
  }
  return result;
}

const ElementwiseRow& row_for(int index, const char* op) {
  require(index >= 0 && index < elementwise_count(), "no such row");
  const ElementwiseRow& row = elementwise_row(index);
  require(cpu_runs(row.isa), "this CPU cannot run that row");
  require(strcmp(row.op, op) == 0, "the row is of another op");
  return row;
}

// A C-contiguous, aligned matrix of a type ("f4", "u1"), as its fields say; pybind11 knows their layout.
struct Matrix {
  void* data;
  idx rows, columns;
};

Matrix matrix(const py::handle& object, const char* type, bool writeable, const char* what) {
  namespace detail = py::detail;
  require(detail::npy_api::get().PyArray_Check_(object.ptr()), what);
  const auto* array = detail::array_proxy(object.ptr());
  const auto* descr = detail::array_descriptor_proxy(array->descr);
  constexpr int kPlain = detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | detail::npy_api::NPY_ARRAY_ALIGNED_;
  const idx bytes = type[1] - '0';
  require((array->flags & kPlain) == kPlain && array->nd == 2, what);
  require(descr->kind == type[0] && descr->byteorder != '>' &&
              py::reinterpret_borrow<py::array>(object).itemsize() == bytes,
          what);
  require(!writeable || (array->flags & detail::npy_api::NPY_ARRAY_WRITEABLE_), what);
  return {array->data, array->dimensions[0], array->dimensions[1]};
}

// "f32" → "f4", "s16" → "i2"; "bf16" → "u2", its bits
struct NumpyType {
  char name[3];
  explicit NumpyType(const char* ours) {
    const int bits = atoi(ours + (ours[0] == 'b' ? 2 : 1));
    name[0] = ours[0] == 's' ? 'i' : ours[0] == 'b' ? 'u' : ours[0];
    name[1] = char('0' + bits / 8);
    name[2] = 0;
  }
};

const char* second_type(const char* types) {
  while (*types < '0' || *types > '9') ++types;
  while (*types >= '0' && *types <= '9') ++types;
  return types;
}

Elementwise job_of(const ElementwiseRow& row, const py::handle& in, const py::handle& out, int low, int high) {
  const Matrix x = matrix(in, NumpyType(row.types).name, false, "the input is not of the row's type and layout");
  const Matrix y = matrix(out, NumpyType(second_type(row.types)).name, true, "out is not of the row's type and layout");
  require(x.rows == y.rows && x.columns == y.columns && x.rows > 0 && x.columns > 0, "out is not of the input's shape");
  Elementwise job = {};
  job.in = x.data, job.out = y.data, job.rows = x.rows, job.inner = x.columns;
  job.low = low, job.high = high;
  return job;
}

// The array as values of a scale's shape, null for None.
template <class T>
const T* values(const py::handle& object, const char* type, const Placement& at, const char* what) {
  if (object.is_none()) return nullptr;
  const Matrix m = matrix(object, type, false, what);
  require(m.rows == at.rows && m.columns == at.columns, what);
  return static_cast<const T*>(m.data);
}

void place(Elementwise& job, const py::handle& scale, const char* type, idx repeat, idx group) {
  const Matrix m = matrix(scale, type, false, "scale is not of the type and layout that kernels take");
  require(
      repeat > 0 && group > 0 && m.rows > 0 && (m.columns - 1) * group < job.inner && m.columns * group >= job.inner,
      "scale does not cover the input");
  job.at = {m.rows, m.columns, repeat, group};
}

void start(const ElementwiseRow& row, const Elementwise& job, int threads) {
  const int most = threads > 0 ? threads : num_threads();
  if (job.rows * job.inner < kReleaseElements) return run(row, job, most, threads > 0);
  py::gil_scoped_release free_others;
  run(row, job, most, threads > 0);
}

void affine(const char* op, int index, const py::handle& in, const py::handle& scale, const py::handle& zero,
            idx repeat, idx group, int low, int high, const py::handle& out, int threads) {
  const ElementwiseRow& row = row_for(index, op);
  Elementwise job = job_of(row, in, out, low, high);
  place(job, scale, "f4", repeat, group);
  job.scale = values<float>(scale, "f4", job.at, "scale");
  job.zero = values<int32_t>(zero, "i4", job.at, "zero is not int32 of scale's shape");
  start(row, job, threads);
}

void quantize_array(int index, const py::handle& x, const py::handle& scale, const py::handle& zero, idx repeat,
                    idx group, int low, int high, const py::handle& out, int threads) {
  affine("quantize", index, x, scale, zero, repeat, group, low, high, out, threads);
}

void dequantize_array(int index, const py::handle& q, const py::handle& scale, const py::handle& zero, idx repeat,
                      idx group, const py::handle& out, int threads) {
  affine("dequantize", index, q, scale, zero, repeat, group, 0, 0, out, threads);
}

void dynamic_quantize_array(int index, const py::handle& x, idx group, int low, int high, const py::handle& scale,
                            const py::handle& zero, const py::handle& sums, const py::handle& out, int threads) {
  const ElementwiseRow& row = row_for(index, "dynamic_quantize");
  Elementwise job = job_of(row, x, out, low, high);
  require(group > 0, "group must be at least 1");
  group = min_of(group, job.inner);
  job.at = {job.rows, ceil_div(job.inner, group), 1, group};
  const auto found = [&](const py::handle& object, const char* type) {
    const Matrix m = matrix(object, type, true, "scale, zero or sums are not writeable, or of another type");
    require(m.rows == job.at.rows && m.columns == job.at.columns, "scale, zero or sums do not fit the groups");
    return m.data;
  };
  job.found_scale = static_cast<float*>(found(scale, "f4"));
  job.found_zero = static_cast<int32_t*>(found(zero, "i4"));
  job.sums = sums.is_none() ? nullptr : static_cast<int32_t*>(found(sums, "i4"));
  start(row, job, threads);
}

void requantize_array(int index, const py::handle& acc, int rounding, const py::handle& m, const py::handle& e,
                      const py::handle& bias, const py::handle& zero, idx repeat, idx group, int low, int high,
                      const py::handle& out, int threads) {
  const ElementwiseRow& row = row_for(index, "requantize");
  require(rounding >= 0 && rounding < kRoundings, "no such rounding");
  Elementwise job = job_of(row, acc, out, low, high);
  const bool fixed = rounding != kHalfEven && rounding != kHalfAway;
  const char* const type = rounding == kHalfEven ? "f4" : rounding == kHalfAway ? "f8" : "i4";
  place(job, m, type, repeat, group);
  require(e.is_none() != fixed, "e goes with the fixed-point roundings");
  Requantizer& by = job.by;
  by.rounding = Rounding(rounding), by.low = low, by.high = high;
  if (rounding == kHalfEven) by.m = values<float>(m, type, job.at, "m");
  else if (rounding == kHalfAway) by.m64 = values<double>(m, type, job.at, "m");
  else by.q = values<int32_t>(m, type, job.at, "m");
  by.e = values<int32_t>(e, "i4", job.at, "e is not int32 of m's shape");
  by.bias = values<int32_t>(bias, "i4", job.at, "bias is not int32 of m's shape");
  by.zero = values<int32_t>(zero, "i4", job.at, "zero is not int32 of m's shape");
  start(row, job, threads);
}

Elementwise pair_of(const ElementwiseRow& row, const py::handle& a, const py::handle& b, const py::handle& out) {
  Elementwise job = job_of(row, a, out, 0, 0);
  const Matrix y = matrix(b, NumpyType(row.types).name, false, "b is not of the row's type and layout");
  require(y.rows == job.rows && y.columns == job.inner, "b is not of a's shape");
  job.other = y.data;
  job.at = {1, 1, 1, job.inner};
  return job;
}

void add_arrays(int index, const py::handle& a, const py::handle& b, float a_ratio, float b_ratio, float offset,
                const py::handle& out, int threads) {
  const ElementwiseRow& row = row_for(index, "add");
  Elementwise job = pair_of(row, a, b, out);
  job.a_factor = a_ratio, job.b_factor = b_ratio, job.offset = offset;
  start(row, job, threads);
}

void mul_arrays(int index, const py::handle& a, const py::handle& b, float m, int a_zero, int b_zero, int zero,
                const py::handle& out, int threads) {
  const ElementwiseRow& row = row_for(index, "mul");
  Elementwise job = pair_of(row, a, b, out);
  job.a_factor = m, job.a_zero = a_zero, job.b_zero = b_zero, job.offset = float(zero);
  start(row, job, threads);
}

void lookup_array(int index, const py::handle& x, const py::handle& table, const py::handle& out, int threads) {
  const ElementwiseRow& row = row_for(index, "lookup");
  Elementwise job = job_of(row, x, out, 0, 0);
  const Matrix t = matrix(table, "u1", false, "the table is not uint8");
  require(t.rows == 1 && t.columns == 256, "the table has not 256 entries");
  job.table = static_cast<const uint8_t*>(t.data);
  job.at = {1, 1, 1, job.inner};
  start(row, job, threads);
}

void softmax_array(int index, const py::handle& x, const py::handle& table, float factor, int zero,
                   const py::handle& out, int threads) {
  const ElementwiseRow& row = row_for(index, "softmax");
  Elementwise job = job_of(row, x, out, 0, 0);
  const Matrix t = matrix(table, "f4", false, "the table is not float32");
  require(t.rows == 1 && t.columns == 256, "the table has not 256 entries");
  job.scale = static_cast<const float*>(t.data);
  job.a_factor = factor, job.a_zero = zero;
  job.at = {1, 1, 1, job.inner};
  start(row, job, threads);
}

}  // namespace

void add_elementwise(PyObject* module) {
  auto m = py::reinterpret_borrow<py::module_>(module);
  m.def("elementwise_rows", &elementwise_rows, "Every elementwise kernel of this build, as data.");
  m.def("quantize", &quantize_array, py::arg("row"), py::arg("x"), py::arg("scale"), py::arg("zero"), py::arg("repeat"),
        py::arg("group"), py::arg("low"), py::arg("high"), py::arg("out"), py::arg("threads"),
        "Kernel.run of one row of quantize. threads as of gemm.");
  m.def("dequantize", &dequantize_array, py::arg("row"), py::arg("q"), py::arg("scale"), py::arg("zero"),
        py::arg("repeat"), py::arg("group"), py::arg("out"), py::arg("threads"),
        "Kernel.run of one row of dequantize. threads as of gemm.");
  m.def("dynamic_quantize", &dynamic_quantize_array, py::arg("row"), py::arg("x"), py::arg("group"), py::arg("low"),
        py::arg("high"), py::arg("scale"), py::arg("zero"), py::arg("sums"), py::arg("out"), py::arg("threads"),
        "Kernel.run of one row of dynamic_quantize. threads as of gemm.");
  m.def("requantize", &requantize_array, py::arg("row"), py::arg("acc"), py::arg("rounding"), py::arg("m"),
        py::arg("e"), py::arg("bias"), py::arg("zero"), py::arg("repeat"), py::arg("group"), py::arg("low"),
        py::arg("high"), py::arg("out"), py::arg("threads"),
        "Kernel.run of one row of requantize; rounding by its place in rounding.py. threads as of gemm.");
  m.def("add", &add_arrays, py::arg("row"), py::arg("a"), py::arg("b"), py::arg("a_ratio"), py::arg("b_ratio"),
        py::arg("offset"), py::arg("out"), py::arg("threads"), "Kernel.run of one row of add. threads as of gemm.");
  m.def("mul", &mul_arrays, py::arg("row"), py::arg("a"), py::arg("b"), py::arg("m"), py::arg("a_zero"),
        py::arg("b_zero"), py::arg("zero"), py::arg("out"), py::arg("threads"),
        "Kernel.run of one row of mul. threads as of gemm.");
  m.def("lookup", &lookup_array, py::arg("row"), py::arg("x"), py::arg("table"), py::arg("out"), py::arg("threads"),
        "Kernel.run of one row of lookup. threads as of gemm.");
  m.def("softmax", &softmax_array, py::arg("row"), py::arg("x"), py::arg("table"), py::arg("factor"), py::arg("zero"),
        py::arg("out"), py::arg("threads"), "Kernel.run of one row of softmax. threads as of gemm.");
}

}  // namespace qk
