// Python's door to mixtures of experts: their weights as one handle, all of a call's experts in one crossing; and the short
// way in, for rows that were decided before (fast_call.cpp): where an expert is 7 MB, Python's own steps find nothing of
// theirs in the caches, and cost 90 µs for 40.
#include "cpu/experts.h"

#include <pybind11/stl.h>

#include <vector>

#include "cpu/features.h"
#include "cpu/threads.h"
#include "fast_arrays.h"
#include "fast_call.h"
#include "linear.h"
#include "require.h"
#include "views.h"

namespace py = pybind11;

namespace qk {
namespace {

constexpr const char* kExpertsName = "qkernels.packed_experts";

constexpr idx kKnown = 64;

struct Weights {
  std::vector<Expert> experts;
  std::vector<bool> is_signed;
  std::vector<int> bits;  // 0: bytes without groups
  idx n = 0, k = 0;
  struct {
    idx m;
    int row;
  } known[kKnown] = {};  // compiled rows that were chosen for so many rows of x
};

Weights* weights_of(PyObject* object) {
  return PyCapsule_IsValid(object, kExpertsName) ? static_cast<Weights*>(PyCapsule_GetPointer(object, kExpertsName))
                                                 : nullptr;
}

template <class T>
const T* of_columns(const py::handle& object, idx n, char kind) {
  if (object.is_none()) return nullptr;
  require(py::isinstance<py::array>(object), "packed_experts: the arrays do not fit");
  const py::array x = py::reinterpret_borrow<py::array>(object);
  require(x.ndim() == 1 && x.shape(0) == n && x.dtype().kind() == kind && x.itemsize() == idx(sizeof(T)) &&
              adjacent(view_of(x.ptr()), sizeof(T)),
          "packed_experts: the arrays do not fit");
  return static_cast<const T*>(x.data());
}

// [(handle of a packed matrix or of packed groups, scales of columns or None, zero points of columns or None)]
py::capsule packed_experts(const py::list& parts) {
  auto made = new Weights;
  const py::capsule owner(made, kExpertsName, [](PyObject* self) { delete weights_of(self); });
  for (const py::handle& each : parts) {
    const py::tuple part = py::cast<py::tuple>(each);
    require(part.size() == 3, "packed_experts: wanted (weights, scales, zero points)");
    const Packed* const bytes = packed_of(part[0].ptr());
    const PackedInt4* const groups = packed_int4_of(part[0].ptr());
    require(bytes || groups, "packed_experts: these weights are not packed");
    const idx n = bytes ? bytes->n : groups->g.n, k = bytes ? bytes->k : groups->g.k;
    require(made->experts.empty() || (n == made->n && k == made->k), "packed_experts: the experts differ in size");
    made->n = n, made->k = k;
    Expert one = {};
    if (bytes) {
      Job job = {};
      job.one.n = n, job.one.k = k;
      set_packed(job, *bytes);
      one.bytes = job.one;
      set_caches(one.bytes);
      one.bytes.w_zero = of_columns<int32_t>(part[2], n, 'i');
    } else {
      one.groups = groups->g;
      set_caches(one.groups);
    }
    one.w_scale = of_columns<float>(part[1], n, 'f');
    require(one.w_scale || (groups && groups->g.scales), "packed_experts: the scales of columns are missing");
    made->experts.push_back(one);
    made->is_signed.push_back(bytes ? bytes->is_signed : groups->w_signed);
    made->bits.push_back(bytes ? 0 : groups->bits);
  }
  return owner;
}

// The row of an expert: it must read these weights, and floats or signed codes made of them. Else false.
bool set_row(Expert& one, int index, int bits, bool is_signed) {
  if (bits == 0) {
    const RowList list = all_rows();
    if (index < 0 || index >= list.count) return false;
    one.row = &list.rows[index];
    return cpu_runs(one.row->isa) && one.row->a_signed && one.row->w_signed == is_signed;
  }
  const Int4List list = all_int4_rows();
  if (index < 0 || index >= list.count) return false;
  one.low = &list.rows[index];
  return cpu_runs(one.low->isa) && one.low->a_signed && one.low->bits == bits && one.low->w_signed == is_signed &&
         one.low->float_sums == (one.groups.scales != nullptr);
}

const float* float_rows(const py::object& object, idx rows, idx columns, const char* what) {
  if (object.is_none()) return nullptr;
  require(py::isinstance<py::array>(object), what);
  const py::array x = py::reinterpret_borrow<py::array>(object);
  require(x.ndim() == 2 && x.shape(0) == rows && x.shape(1) == columns && x.dtype().kind() == 'f' &&
              x.itemsize() == 4 && adjacent(view_of(x.ptr()), 4),
          what);
  return static_cast<const float*>(x.data());
}

// Experts that end at these rows of x, each on the compiled row that row_of says, with its bias; first what is wrong.
template <class RowOf>
const char* placed(const Weights& w, const int64_t* ends, idx m, const float* biases, const RowOf& row_of,
                   std::vector<Expert>& experts) {
  experts = w.experts;
  idx first = 0, of_floats = 0, of_codes = 0;
  for (size_t e = 0; e < experts.size(); first = idx(ends[e++])) {
    Expert& one = experts[e];
    if (ends[e] < first || ends[e] > m) return "linear_experts: the ends do not fit";
    one.first = first, one.rows = idx(ends[e]) - first;
    if (biases) one.bias = biases + idx(e) * w.n;
    if (one.rows == 0) continue;
    if (!set_row(one, row_of(e, one.rows), w.bits[e], w.is_signed[e]))
      return "linear_experts: that row does not run these weights here";
    one.low&& one.low->of_floats ? ++of_floats : ++of_codes;
  }
  if (first != m) return "linear_experts: the ends do not fit";
  return of_floats && of_codes ? "linear_experts: rows of codes beside rows of floats" : nullptr;
}

// rows, ends: of every expert its kernel (any number where it has no rows of x) and where its rows end.
void linear_experts(const std::vector<int>& rows, const std::vector<int64_t>& ends, const py::array& x,
                    const py::object& w, const py::array& out, const py::tuple& by, const py::object& bias,
                    int threads) {
  const Weights* const weights = weights_of(w.ptr());
  require(weights && rows.size() == weights->experts.size() && ends.size() == rows.size(),
          "linear_experts: these weights do not fit");
  const idx m = x.ndim() == 2 ? x.shape(0) : 0, n = weights->n, k = weights->k, count = idx(rows.size());
  const float* const floats = float_rows(x, m, k, "linear_experts: x must be float32 (rows, k), adjacent");
  const float* const biases = float_rows(bias, count, n, "linear_experts: bias does not fit");
  require(m > 0, "linear_experts: x has no rows");
  std::vector<Expert> experts;
  const char* const wrong = placed(*weights, ends.data(), m, biases, [&](size_t e, idx) { return rows[e]; }, experts);
  require(!wrong, wrong);
  std::vector<int32_t> zeros;
  Epilogue e = epilogue_of(by, out, m, n, true, zeros, true);
  require(e.type >= Written::f32 && e.type <= Written::bf16 && !e.bias && !read_a_zero(by, m),
          "linear_experts: floats come out of floats");
  e.float_sums = false;
  bool good;
  {
    py::gil_scoped_release free_others;
    good = run_experts(experts.data(), count, m, n, k, e, floats, threads > 0 ? threads : num_threads(), threads > 0);
  }
  if (!good) throw std::bad_alloc();
}

// These rows run these weights with so many rows of x each, quantized on the way.
void remember_experts(const py::object& w, const std::vector<int>& rows, const std::vector<idx>& counts) {
  Weights* const weights = weights_of(w.ptr());
  require(weights && rows.size() == counts.size(), "remember_experts: these weights do not fit");
  for (size_t e = 0; e < rows.size(); ++e)
    if (counts[e] > 0) weights->known[counts[e] % kKnown] = {counts[e], rows[e]};
}

// (rows, columns) float32 of a plain array, or null.
const float* plain_rows(PyObject* object, View& v, idx rows, idx columns) {
  return kind_of(object, v) == kF32 && v.dims == 2 && v.shape[0] == rows && v.shape[1] == columns
             ? reinterpret_cast<const float*>(v.data)
             : nullptr;
}

// Where rows of x begin, and after the last expert end: int64, adjacent, or null.
const int64_t* offsets_of(PyObject* object, idx count) {
  if (!is_exact_array(object)) return nullptr;
  const View v = view_of(object);
  const py::array x = py::reinterpret_borrow<py::array>(object);
  const bool good = v.dims == 1 && v.shape[0] == count && x.dtype().kind() == 'i' && x.itemsize() == 8 &&
                    x.dtype().byteorder() != '>' && adjacent(v, 8);
  const int64_t* const offsets = reinterpret_cast<const int64_t*>(v.data);
  return good && offsets[0] == 0 ? offsets : nullptr;
}

// fast_experts(x, experts, offsets, bias, clamp, out) → floats of floats, or None: ask Python.
PyObject* fast_experts(PyObject*, PyObject* const* args, Py_ssize_t given) {
  const Weights* const w = given == 6 && !use_in_force() ? weights_of(args[1]) : nullptr;
  View x, bias, out;
  Epilogue e = {};
  e.type = Written::f32;
  if (!w || kind_of(args[0], x) != kF32 || x.dims != 2 || x.shape[0] < 1 || x.shape[1] != w->k ||
      !set_clamp(e, args[4]))
    return decline();
  const idx m = x.shape[0], n = w->n, count = idx(w->experts.size());
  const int64_t* const offsets = offsets_of(args[2], count + 1);
  const float* const biases = args[3] == Py_None ? nullptr : plain_rows(args[3], bias, count, n);
  if (!offsets || (args[3] != Py_None && !biases)) return decline();
  std::vector<Expert> experts;
  const auto row_of = [&](size_t, idx rows) {
    const auto& known = w->known[rows % kKnown];
    return known.m == rows ? known.row : -1;
  };
  if (placed(*w, offsets + 1, m, biases, row_of, experts)) return decline();
  Held result;
  const Py_ssize_t shape[] = {m, n};
  if (args[5] != Py_None) Py_INCREF(result.object = args[5]);
  else if (!(result.object = new_array(2, shape, npy_api::NPY_FLOAT_))) return nullptr;
  if (!plain_rows(result.object, out, m, n) || !out.writeable || overlap(out, m * n * 4, x, m * w->k * 4) ||
      overlap(out, m * n * 4, bias, count * n * 4))
    return decline();
  e.out = out.data, e.out_row = n;
  bool good;
  Py_BEGIN_ALLOW_THREADS;
  good =
      run_experts(experts.data(), count, m, n, w->k, e, reinterpret_cast<const float*>(x.data), num_threads(), false);
  Py_END_ALLOW_THREADS;
  return good ? result.give() : PyErr_NoMemory();
}

PyMethodDef methods[] = {
    {"fast_experts", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(fast_experts)), METH_FASTCALL,
     "fast_experts(x, experts, offsets, bias, clamp, out) → the result, or None where Python must decide."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void add_experts(py::module_& module) {
  module.def("packed_experts", &packed_experts, py::arg("parts"),
             "A handle to the packed weights of experts; the caller keeps the buffers alive.");
  module.def("linear_experts", &linear_experts, py::arg("rows"), py::arg("ends"), py::arg("x"), py::arg("w"),
             py::arg("out"), py::arg("epilogue"), py::arg("bias"), py::arg("threads") = 0,
             "Rows of x sorted by expert, each against its expert, in one call: Kernel.run of all of them.");
  module.def("remember_experts", &remember_experts, py::arg("w"), py::arg("rows"), py::arg("counts"),
             "These kernels were chosen for so many rows of x each: fast_experts takes them.");
  if (PyModule_AddFunctions(module.ptr(), methods) < 0) throw py::error_already_set();
}

}  // namespace qk
