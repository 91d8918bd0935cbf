// Python's door: rows, features, threads, pack, gemm. Pointers and bounds are checked here for memory safety, meaning is
// checked in Python; nothing is decided here. The GIL is released round every product that is worth it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "bind_conv.h"
#include "bind_pools.h"
#include "bind_topk.h"
#include "cpu/features.h"
#include "cpu/pack.h"
#include "cpu/plan.h"
#include "cpu/read.h"
#include "cpu/threads.h"
#include "elementwise_door.h"
#include "fast_call.h"
#include "fast_conv.h"
#include "fast_elements.h"
#include "linear.h"
#include "require.h"
#include "views.h"

#ifndef QK_MODULE
#define QK_MODULE _native
#endif
#define QK_PYBIND11_MODULE(name, variable) PYBIND11_MODULE(name, variable)

namespace py = pybind11;

namespace qk {
namespace {

const KernelRow& row_at(int index) {
  const RowList list = all_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  return list.rows[index];
}

py::list rows() {
  py::list result;
  const RowList list = all_rows();
  for (int i = 0; i < list.count; ++i) {
    const KernelRow& row = list.rows[i];
    py::dict one;
    one["name"] = row.name;
    one["types"] = row.types;
    one["isa"] = row.isa;
    one["mr"] = row.mr;
    one["nr"] = row.nr;
    one["k_step"] = row.k_step;
    one["min_m"] = row.min_m;
    one["gops"] = row.gops;
    one["call_us"] = row.call_us;
    one["runs_here"] = cpu_runs(row.isa);
    result.append(one);
  }
  return result;
}

py::dict features() {
  py::dict result;
  const Features found = cpu_features();
  for (int i = 0; i < found.count; ++i) result[found.list[i].name] = found.list[i].present;
  return result;
}

void gemm(int index, const py::array& a, const py::object& b, const py::array& out, const py::object& a_zero,
          const py::object& b_zero, int threads) {
  const KernelRow& row = row_at(index);
  require(cpu_runs(row.isa), "gemm: this CPU cannot run that row");
  const View av = view_of(a.ptr()), ov = view_of(out.ptr());
  Job job = {};
  require(ov.dims >= 2 && ov.dims - 2 <= kMaxBatchDims && av.dims == ov.dims,
          "gemm: a and out must have the same dimensions, 2 to 18");
  require(is_byte(av, row.a_signed), "gemm: a is not of the row's type");
  require(is_int32(ov) && ov.writeable && ov.aligned, "gemm: out must be int32, writeable and aligned");
  require(set_shapes(job, av, ov), "gemm: a does not fit out, or out's columns are not adjacent");
  if (PyCapsule_CheckExact(b.ptr())) {
    const Packed* w = packed_of(b.ptr());
    require(w && w->k == job.one.k && w->n == job.one.n && w->is_signed == row.w_signed,
            "gemm: the packed matrix does not fit");
    set_packed(job, *w);
  } else {
    const View bv = view_of(b.ptr());
    require(bv.data && is_byte(bv, row.w_signed) && set_plain(job, bv, ov), "gemm: b does not fit");
  }
  require(set_zero(job, a_zero.ptr(), ov, true) && set_zero(job, b_zero.ptr(), ov, false),
          "gemm: a zero point array does not fit");
  set_caches(job.one);
  bool good;
  {
    py::gil_scoped_release free_others;
    good = threads > 0 ? run(row, job, threads, true) : run(row, job, num_threads());
  }
  if (!good) throw std::bad_alloc();
}

// b (k, n) → data (uint8, whole panels, K to 64), sums (int32, whole panels)
void pack(const py::array& b, const py::array& data, const py::array& sums) {
  const View bv = view_of(b.ptr()), dv = view_of(data.ptr()), sv = view_of(sums.ptr());
  require(bv.dims == 2 && (is_byte(bv, true) || is_byte(bv, false)), "pack: b must be a matrix of int8 or uint8");
  const PlainWeights w = {bv.data, bv.shape[0], bv.shape[1], bv.strides[0], bv.strides[1], bv.type == kInt8};
  const idx panels = ceil_div(w.n, kPanel);
  require(dv.dims == 1 && is_byte(dv, false) && dv.writeable && dv.strides[0] == 1 &&
              dv.shape[0] == panels * kPanel * padded(w.k, kPackedK),
          "pack: data has the wrong size");
  require(sv.dims == 1 && is_int32(sv) && sv.writeable && sv.aligned && sv.strides[0] == 4 &&
              sv.shape[0] == panels * kPanel,
          "pack: sums has the wrong size");
  py::gil_scoped_release free_others;
  pack_panels(w, kPackedK, {0, panels}, dv.data, reinterpret_cast<int32_t*>(sv.data));
}

// A handle to packed weights whose buffers the caller keeps alive.
py::capsule packed(const py::array& data, const py::array& sums, idx k, idx n, bool is_signed) {
  const View dv = view_of(data.ptr()), sv = view_of(sums.ptr());
  const idx panels = ceil_div(n, kPanel);
  require(k > 0 && n > 0 && dv.dims == 1 && is_byte(dv, false) && dv.strides[0] == 1 &&
              dv.shape[0] == panels * kPanel * padded(k, kPackedK),
          "packed: data has the wrong size");
  require(sv.dims == 1 && is_int32(sv) && sv.aligned && sv.strides[0] == 4 && sv.shape[0] == panels * kPanel,
          "packed: sums has the wrong size");
  const bool narrow = are_narrow(dv.data, dv.shape[0], is_signed);
  return py::capsule(new Packed{dv.data, reinterpret_cast<const int32_t*>(sv.data), k, n, is_signed, narrow},
                     kPackedName, [](PyObject* self) { delete packed_of(self); });
}

double peak(int index, idx rounds) {
  const KernelRow& row = row_at(index);
  require(cpu_runs(row.isa), "peak: this CPU cannot run that row");
  py::gil_scoped_release free_others;
  return row.peak(rounds);
}

void lend_team_of(uintptr_t run, uintptr_t number, uintptr_t size) {
  using Run = decltype(Team::run);
  using Count = decltype(Team::size);
  const Team team = {reinterpret_cast<Run>(run), reinterpret_cast<Count>(number), reinterpret_cast<Count>(size)};
  lend_team(run && number && size ? new Team(team) : nullptr);
}

uint64_t read_memory(const py::array& data, idx rounds) {
  const View v = view_of(data.ptr());
  require(v.dims == 1 && is_byte(v, false) && v.strides[0] == 1, "read_memory: data must be adjacent uint8");
  py::gil_scoped_release free_others;
  return read_bytes(v.data, v.shape[0], rounds);
}

}  // namespace
}  // namespace qk

QK_PYBIND11_MODULE(QK_MODULE, m) {
  using namespace qk;
  m.doc() = "The compiled half of qkernels: kernels, packing, threads. Private; see csrc/README.md.";
  m.def("rows", &rows, "Every kernel of this build, as data.");
  m.def("features", &features, "CPU features that kernels ask for, found or not.");
  m.def("gemm", &gemm, py::arg("row"), py::arg("a"), py::arg("b"), py::arg("out"), py::arg("a_zero") = py::none(),
        py::arg("b_zero") = py::none(), py::arg("threads") = 0,
        "Kernel.run of one row. threads 0: as many as set and worth waking; else exactly so many.");
  m.def("pack", &pack, py::arg("b"), py::arg("data"), py::arg("sums"), "Plain (k, n) weights into layout n16k4.");
  m.def("packed", &packed, py::arg("data"), py::arg("sums"), py::arg("k"), py::arg("n"), py::arg("is_signed"),
        "A handle to packed weights; the caller keeps both buffers alive.");
  m.def("peak", &peak, py::arg("row"), py::arg("rounds"), "Multiply from registers only; operations done.");
  m.def("read_memory", &read_memory, py::arg("data"), py::arg("rounds"),
        "Read all bytes, in order, so many times; a sum of them.");
  m.def("get_num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"), "0: as many as this process may use.");
  m.def(
      "lend_team", &lend_team_of, py::arg("run"), py::arg("number"), py::arg("size"),
      "Addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads: work on those threads. 0: on our own.");
  m.def("available_cpus", &available_cpus, "By affinity mask and cgroup quota.");
  m.def("cache_bytes", &cache_bytes, py::arg("level"));
  add_elementwise(m.ptr());
  add_pools(m.ptr());
  add_linear(m);
  add_conv(m);
  add_int4(m);
  add_experts(m);
  add_topk(m);
  add_fast_call(m.ptr());
  add_fast_conv(m.ptr());
  add_fast_elements(m.ptr());
  add_fast_linear(m.ptr());
  add_fast_tensors(m.ptr());
  add_fast_static(m.ptr());
#ifdef QK_EMULATE
  m.attr("emulated") = true;
#else
  m.attr("emulated") = false;
#endif
}

// For threadpoolctl, which looks symbols up in the shared library.
extern "C" {
__attribute__((visibility("default"))) int qkernels_get_num_threads() { return qk::num_threads(); }
__attribute__((visibility("default"))) void qkernels_set_num_threads(int n) { qk::set_num_threads(n); }
}
