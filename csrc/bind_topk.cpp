// Python's door to the search. Sizes and pointers are checked here for memory safety; meaning is checked in Python.
#include "bind_topk.h"

#include "cpu/threads.h"
#include "cpu/topk.h"
#include "require.h"
#include "views.h"

namespace py = pybind11;

namespace qk {
namespace {

bool is_result(const py::array& array, idx rows, idx k, idx bytes) {
  const View v = view_of(array.ptr());
  return v.dims == 2 && v.shape[0] == rows && v.shape[1] == k && array.dtype().kind() == 'i' &&
         array.itemsize() == bytes && (array.flags() & py::array::c_style) && v.writeable && v.aligned;
}

void topk(int index, const py::array& corpus, const py::array& queries, const py::array& scores,
          const py::array& indices, bool distance, int threads) {
  const RowList list = all_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  const KernelRow& row = list.rows[index];
  require(cpu_runs(row.isa), "topk: this CPU cannot run that row");
  const View c = view_of(corpus.ptr()), q = view_of(queries.ptr());
  require(c.dims == 2 && is_byte(c, row.a_signed) && c.shape[0] > 0 && c.shape[1] > 0,
          "topk: the corpus is not of the row's type");
  require(q.dims == 2 && is_byte(q, row.w_signed) && q.shape[0] > 0 && q.shape[1] == c.shape[1],
          "topk: the queries do not fit");
  const View s = view_of(scores.ptr());
  require(s.dims == 2 && s.shape[1] >= 1 && s.shape[1] <= c.shape[0], "topk: k is not of 1 … the size of the corpus");
  require(is_result(scores, q.shape[0], s.shape[1], 4) && is_result(indices, q.shape[0], s.shape[1], 8),
          "topk: the results do not fit");
  TopK job = {};
  job.corpus = c.data, job.rows = c.shape[0], job.dims = c.shape[1];
  job.corpus_row = c.strides[0], job.corpus_col = c.strides[1];
  job.queries = q.data, job.columns = q.shape[0], job.queries_row = q.strides[0], job.queries_col = q.strides[1];
  job.k = s.shape[1], job.distance = distance;
  job.scores = reinterpret_cast<int32_t*>(s.data);
  job.indices = reinterpret_cast<int64_t*>(view_of(indices.ptr()).data);
  bool good;
  {
    py::gil_scoped_release free_others;
    good = run_topk(row, job, threads > 0 ? threads : num_threads(), threads > 0);
  }
  if (!good) throw std::bad_alloc();
}

}  // namespace

void add_topk(py::module_& module) {
  module.def("topk", &topk, py::arg("row"), py::arg("corpus"), py::arg("queries"), py::arg("scores"),
             py::arg("indices"), py::arg("distance"), py::arg("threads") = 0,
             "Kernel.run of op topk, on one row. threads as of gemm.");
}

}  // namespace qk
