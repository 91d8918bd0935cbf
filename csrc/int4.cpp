// Python's door to weights of 4 and 2 bits, and of 8 with groups: rows as data, packed weights as handles, Kernel.run of
// their rows.
#include "cpu/int4.h"

#include <vector>

#include "cpu/features.h"
#include "cpu/threads.h"
#include "linear.h"
#include "require.h"
#include "views.h"

namespace py = pybind11;

namespace qk {
namespace {

constexpr const char* kPackedInt4 = "qkernels.packed_int4";

py::list int4_rows() {
  py::list result;
  const Int4List list = all_int4_rows();
  for (int i = 0; i < list.count; ++i) {
    const Int4Row& row = list.rows[i];
    py::dict one;
    one["name"] = row.name;
    one["op"] = row.of_floats ? "weight_only" : "linear";
    one["types"] = row.types;
    one["isa"] = row.isa;
    one["mr"] = row.mr;
    one["nr"] = row.nr;
    one["bits"] = row.bits;
    one["min_m"] = row.min_m;
    one["gops"] = row.gops;
    one["gb_s"] = row.gb_s;
    one["call_us"] = row.call_us;
    one["runs_here"] = cpu_runs(row.isa);
    result.append(one);
  }
  return result;
}

// Adjacent elements of one of two sizes, so many; null for None.
const void* elements(const py::object& object, idx count, size_t size, const char* what) {
  if (object.is_none()) return nullptr;
  require(py::isinstance<py::array>(object), what);
  const py::array x = py::reinterpret_borrow<py::array>(object);
  require(
      x.size() == count && size_t(x.itemsize()) == size && (x.flags() & py::array::c_style) && view_of(x.ptr()).aligned,
      what);
  return x.data();
}

// A handle to packed weights whose buffers the caller keeps alive.
py::capsule packed_int4(const py::object& data, idx k, idx n, int bits, bool w_signed, idx group,
                        const py::object& scales, int scale_type, const py::object& factors, const py::object& zeros,
                        int zero, const py::object& sums, bool fits_int8, bool tame_scales) {
  require(k > 0 && n > 0 && (bits == 8 || ((bits == 4 || bits == 2) && !w_signed)) && group > 0 && group % kUnit == 0,
          "packed_int4: bad sizes");
  require(scale_type >= kScaleF32 && scale_type <= kScaleBf16, "packed_int4: unknown scale type");
  PackedInt4 w = {};
  w.bits = bits, w.w_signed = w_signed;
  Int4& g = w.g;
  g.k = k, g.n = n, g.group = group;
  const idx count = padded(n, kPanel) * g.groups();
  g.w_panel = g.k_whole() * kPanel * bits / 8;
  g.w = static_cast<const uint8_t*>(elements(data, padded(n, kPanel) / kPanel * g.w_panel, 1, "packed_int4: data"));
  require(g.w, "packed_int4: data");
  g.scale_type = ScaleType(scale_type);
  g.scales = elements(scales, count, scale_type == kScaleF32 ? 4 : 2, "packed_int4: scales");
  g.factors = static_cast<const uint8_t*>(elements(factors, count, 1, "packed_int4: factors"));
  g.zeros = static_cast<const uint8_t*>(elements(zeros, count, 1, "packed_int4: zeros"));
  g.zero = zero;
  g.w_sums = static_cast<const int32_t*>(elements(sums, count, 4, "packed_int4: sums"));
  g.fits_int8 = fits_int8, g.tame_scales = tame_scales;
  return py::capsule(new PackedInt4(w), kPackedInt4, [](PyObject* self) { delete packed_int4_of(self); });
}

void linear_int4(int index, const py::array& a, const py::object& w, const py::array& out, const py::tuple& by,
                 int threads) {
  const Int4List list = all_int4_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  const Int4Row& row = list.rows[index];
  require(cpu_runs(row.isa), "linear: this CPU cannot run that row");
  const PackedInt4* const packed = packed_int4_of(w.ptr());
  require(packed, "linear: these weights are not packed for this row");
  Int4 g = packed->g;
  const View av = view_of(a.ptr());
  require(packed->bits == row.bits && packed->w_signed == row.w_signed && (g.scales != nullptr) == row.float_sums &&
              av.dims == 2 && av.shape[1] == g.k && av.shape[0] > 0,
          "linear: these weights do not fit");
  g.m = av.shape[0];
  const bool real = a.dtype().kind() == 'f';
  if (real) {
    require(row.a_signed && a.itemsize() == 4 && (a.flags() & py::array::c_style) && av.aligned,
            "linear: a must be float32, adjacent");
  } else {
    require(is_byte(av, row.a_signed), "linear: a is not of the row's type");
    g.a = av.data, g.a_row = av.strides[0], g.a_col = av.strides[1];
  }
  set_caches(g);
  std::vector<int32_t> zeros;
  const Epilogue e = epilogue_of(by, out, g.m, g.n, real, zeros, row.float_sums);
  g.a_zero = read_a_zero(by, g.m);
  require(!g.a_zero || g.w_sums, "linear: zero points of a need the sums of the weights");
  require(!real || (e.type >= Written::f32 && e.type <= Written::bf16 && !g.a_zero), "linear: float a gives floats");
  require(real || !row.of_floats, "weight_only: a must be float32, adjacent");
  require(!row.float_sums || (e.type >= Written::f32 && e.type <= Written::bf16 && !e.bias),
          "linear: float sums give floats, with a float bias");
  bool good;
  {
    py::gil_scoped_release free_others;
    const float* const x = real ? reinterpret_cast<const float*>(av.data) : nullptr;
    good = run_int4(row, g, e, x, threads > 0 ? threads : num_threads(), threads > 0);
  }
  if (!good) throw std::bad_alloc();
}

}  // namespace

const PackedInt4* packed_int4_of(PyObject* object) {
  return PyCapsule_IsValid(object, kPackedInt4) ? static_cast<PackedInt4*>(PyCapsule_GetPointer(object, kPackedInt4))
                                                : nullptr;
}

void add_int4(py::module_& module) {
  module.def("int4_rows", &int4_rows, "Every kernel of weights of 4 and 2 bits, and of 8 with groups, as data.");
  module.def("packed_int4", &packed_int4, py::arg("data"), py::arg("k"), py::arg("n"), py::arg("bits"),
             py::arg("w_signed"), py::arg("group"), py::arg("scales"), py::arg("scale_type"), py::arg("factors"),
             py::arg("zeros"), py::arg("zero"), py::arg("sums"), py::arg("fits_int8"), py::arg("tame_scales"),
             "A handle to packed weights; the caller keeps the buffers alive.");
  module.def("linear_int4", &linear_int4, py::arg("row"), py::arg("a"), py::arg("w"), py::arg("out"),
             py::arg("epilogue"), py::arg("threads") = 0,
             "Kernel.run of ops linear and weight_only with such weights.");
}

}  // namespace qk
