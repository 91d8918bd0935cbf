// Python's door to linear: pointers and bounds are checked here for memory safety, meaning is checked in Python.
#include "linear.h"

#include <string.h>

#include "cpu/linear.h"
#include "cpu/threads.h"
#include "require.h"
#include "views.h"

namespace py = pybind11;

namespace qk {
namespace {

template <int N>
int index_of(const py::handle& name, const char* const (&names)[N], const char* what) {
  const std::string wanted = py::cast<std::string>(name);
  for (int i = 0; i < N; ++i)
    if (wanted == names[i]) return i;
  throw py::value_error(what);
}

enum Field {  // of qkernels/epilogue.py's Epilogue, in its order
  kOut,
  kAZero,
  kWZero,
  kBias,
  kAScale,
  kWScale,
  kActivation,
  kRounding,
  kM,
  kE,
  kZero,
  kLimits,
  kResidual,
  kResidualScale,
  kResidualZero,
  kFields
};

struct Type {
  char kind;
  int bytes;
};

// Adjacent elements of that type; (rows, n) or, where rows is 0, (n,). Null for None.
const void* array_of(const py::handle& object, Type type, idx rows, idx n, const char* what) {
  if (object.is_none()) return nullptr;
  require(py::isinstance<py::array>(object), what);
  const py::array x = py::reinterpret_borrow<py::array>(object);
  const bool fits = rows ? x.ndim() == 2 && x.shape(0) == rows && x.shape(1) == n : x.ndim() == 1 && x.shape(0) == n;
  require(fits && x.dtype().kind() == type.kind && x.itemsize() == type.bytes && (x.flags() & py::array::c_style) &&
              view_of(x.ptr()).aligned,
          what);
  return x.data();
}

constexpr Type kF32 = {'f', 4}, kF64 = {'f', 8}, kS32 = {'i', 4};

// 1 or m rows of a two-dimensional array, and so its row step.
idx rows_of(const py::handle& object, idx m, const char* what) {
  require(py::isinstance<py::array>(object), what);
  const py::array x = py::reinterpret_borrow<py::array>(object);
  require(x.ndim() == 2 && (x.shape(0) == 1 || x.shape(0) == m), what);
  return x.shape(0);
}

void read_bias(Epilogue& e, const py::handle& bias, idx m, idx n) {
  if (bias.is_none()) return;
  const idx rows = rows_of(bias, m, "linear: bias does not fit");
  if (view_of(bias.ptr()).type == kInt32) {
    e.bias = static_cast<const int32_t*>(array_of(bias, kS32, rows, n, "linear: bias does not fit"));
    e.bias_row = rows > 1 ? n : 0;
  } else {
    e.float_bias = static_cast<const float*>(array_of(bias, kF32, 1, n, "linear: bias does not fit"));
  }
}

void read_multipliers(Epilogue& e, const py::tuple& by, idx m, idx n, std::vector<int32_t>& zeros) {
  static const char* const names[] = {"half_even", "gemmlowp", "ruy", "half_up", "half_away"};
  static const char* const wrong = "linear: m does not fit";
  e.rounding = Rounding(index_of(by[kRounding], names, "linear: unknown rounding"));
  const idx rows = rows_of(by[kM], m, wrong);
  e.m_row = rows > 1 ? n : 0;
  if (e.rounding == kHalfEven) {
    e.m = static_cast<const float*>(array_of(by[kM], kF32, rows, n, wrong));
  } else if (e.rounding == kHalfAway) {
    e.m64 = static_cast<const double*>(array_of(by[kM], kF64, rows, n, wrong));
  } else {
    e.q = static_cast<const int32_t*>(array_of(by[kM], kS32, rows, n, wrong));
    e.e = static_cast<const int32_t*>(array_of(by[kE], kS32, rows, n, wrong));
    require(e.e, wrong);
    for (idx i = 0; i < rows * n && !e.left; ++i) e.left = e.e[i] > 0;
  }
  const py::tuple limits = by[kLimits];
  e.zero = py::cast<int32_t>(by[kZero]);
  e.low = py::cast<int32_t>(limits[0]), e.high = py::cast<int32_t>(limits[1]);
  if (e.zero && e.rounding != kHalfEven) {
    zeros.assign(size_t(n), e.zero);
    e.zeros = zeros.data();
  }
}

void read_activation(Epilogue& e, const py::handle& activation) {
  static const char* const names[] = {"", "gelu", "gelu_tanh", "silu", "hardswish", "sigmoid", "tanh"};
  if (activation.is_none()) return;
  if (py::isinstance<py::str>(activation)) {
    e.curve = Curve(index_of(activation, names, "linear: unknown activation"));
    return;
  }
  const py::tuple ends = py::cast<py::tuple>(activation);
  e.clamps = true;
  e.clamp_low = py::cast<float>(ends[0]), e.clamp_high = py::cast<float>(ends[1]);
}

void read_residual(Epilogue& e, const py::tuple& by, idx m, idx n) {
  const py::handle residual = by[kResidual];
  if (residual.is_none()) return;
  const View v = view_of(residual.ptr());
  const bool codes = v.type == kInt8 || v.type == kUint8;
  e.residual_type = !codes ? Residual::f32 : v.type == kInt8 ? Residual::s8 : Residual::u8;
  const Type type = codes ? Type{v.type == kInt8 ? 'i' : 'u', 1} : kF32;
  e.residual = array_of(residual, type, m, n, "linear: residual does not fit");
  e.residual_row = n;
  e.residual_scale = py::cast<float>(by[kResidualScale]);
  e.residual_zero = py::cast<int32_t>(by[kResidualZero]);
}

}  // namespace

const int32_t* read_a_zero(const py::tuple& by, idx m) {
  return static_cast<const int32_t*>(array_of(by[kAZero], kS32, 0, m, "linear: a_zero does not fit"));
}

Epilogue epilogue_of(const py::tuple& by, const py::array& out, idx m, idx n, bool finds_scale,
                     std::vector<int32_t>& zeros, bool float_sums) {
  static const char* const names[] = {"int32", "float32", "float16", "bfloat16", "int8", "uint8", "int16", "uint16"};
  static const int bytes[] = {4, 4, 2, 2, 1, 1, 2, 2};
  require(by.size() == kFields, "linear: not an Epilogue");
  Epilogue e = {};
  const int type = index_of(by[kOut], names, "linear: unknown result");
  e.type = Written(type);
  const View o = view_of(out.ptr());
  require(o.dims == 2 && o.shape[0] == m && o.shape[1] == n && out.itemsize() == bytes[type] && o.writeable &&
              o.aligned && (out.flags() & py::array::c_style),
          "linear: out does not fit");
  e.out = o.data;
  e.out_row = n;
  read_bias(e, by[kBias], m, n);
  require(!e.float_bias || e.type <= Written::bf16, "linear: codes have no float bias");
  if (e.type == Written::s32) {
    require(!e.float_bias, "linear: int32 results have no float bias");
    return e;
  }
  read_residual(e, by, m, n);
  if (e.type >= Written::s8) {
    read_multipliers(e, by, m, n, zeros);
    return e;
  }
  read_activation(e, by[kActivation]);
  e.w_scale = static_cast<const float*>(array_of(by[kWScale], kF32, 0, n, "linear: w_scale does not fit"));
  e.float_sums = float_sums;
  require(e.w_scale || float_sums, "linear: w_scale does not fit");
  if (!finds_scale) {
    const View s = view_of(by[kAScale].ptr());
    require(s.data && s.dims == 1, "linear: a_scale does not fit");
    e.a_scale_step = s.shape[0] > 1 ? 1 : 0;
    e.a_scale = static_cast<const float*>(
        array_of(by[kAScale], kF32, 0, s.shape[0] > 1 ? m : 1, "linear: a_scale does not fit"));
  }
  return e;
}

namespace {

void linear(int index, const py::array& a, const py::object& w, const py::array& out, const py::tuple& by,
            int threads) {
  const RowList list = all_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  const KernelRow& row = list.rows[index];
  require(cpu_runs(row.isa), "linear: this CPU cannot run that row");
  const View av = view_of(a.ptr());
  const Packed* packed = packed_of(w.ptr());
  require(packed && packed->is_signed == row.w_signed && av.dims == 2 && av.shape[1] == packed->k && av.shape[0] > 0,
          "linear: the packed matrix does not fit");
  const bool real = a.dtype().kind() == 'f';
  Job job = {};
  Gemm& g = job.one;
  g.m = av.shape[0], g.n = packed->n, g.k = packed->k;
  if (real) {
    require(row.a_signed && a.itemsize() == 4 && (a.flags() & py::array::c_style) && av.aligned,
            "linear: a must be float32, adjacent");
  } else {
    require(is_byte(av, row.a_signed), "linear: a is not of the row's type");
    g.a = av.data, g.a_row = av.strides[0], g.a_col = av.strides[1];
  }
  set_packed(job, *packed);
  set_caches(g);
  g.a_zero = read_a_zero(by, g.m);
  g.w_zero = static_cast<const int32_t*>(array_of(by[kWZero], kS32, 0, g.n, "linear: w_zero does not fit"));
  std::vector<int32_t> zeros;
  const Epilogue e = epilogue_of(by, out, g.m, g.n, real, zeros);
  require(!real || (e.type >= Written::f32 && e.type <= Written::bf16 && !g.a_zero), "linear: float a gives floats");
  bool good;
  {
    py::gil_scoped_release free_others;
    const float* const x = real ? reinterpret_cast<const float*>(av.data) : nullptr;
    good = run_linear(row, g, e, x, threads > 0 ? threads : num_threads(), threads > 0);
  }
  if (!good) throw std::bad_alloc();
}

}  // namespace

void add_linear(py::module_& module) {
  module.def("linear", &linear, py::arg("row"), py::arg("a"), py::arg("w"), py::arg("out"), py::arg("epilogue"),
             py::arg("threads") = 0,
             "Kernel.run of op linear, on one row. threads 0: as many as set and worth waking; else exactly so many.");
}

}  // namespace qk
