// Products with packed weights, as Python calls them.
#include <string>

#include "bind.h"
#include "device.h"
#include "weight_rows.h"

namespace qk::cuda {
namespace {

void bind_structs(py::module_& m) {
  {
    auto bound = py::class_<Weights>(m, "Weights").def(py::init([] { return Weights{}; }));
    QK_NUMBER(Weights, n);
    QK_NUMBER(Weights, k);
    QK_NUMBER(Weights, bits);
    QK_POINTER(Weights, codes);
    QK_POINTER(Weights, scales);
    QK_NUMBER(Weights, scale_type);
    QK_POINTER(Weights, zeros);
    QK_POINTER(Weights, factors);
    QK_NUMBER(Weights, zero);
    QK_NUMBER(Weights, group);
    QK_NUMBER(Weights, groups);
  }
  {
    auto bound = py::class_<WeightProduct>(m, "WeightProduct").def(py::init([] { return WeightProduct{}; }));
    QK_POINTER(WeightProduct, x);
    QK_NUMBER(WeightProduct, x_type);
    QK_NUMBER(WeightProduct, m);
    QK_NUMBER(WeightProduct, x_pitch);
    QK_POINTER(WeightProduct, offsets);
    QK_NUMBER(WeightProduct, experts);
    bound.def_readwrite("w", &WeightProduct::w);
    bound.def_readwrite("epilogue", &WeightProduct::epilogue);
  }
}

const WeightRow& row_at(int index) {
  const WeightRowList list = weight_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  return list.rows[index];
}

py::list rows() {
  py::list result;
  const WeightRowList list = weight_rows();
  for (int i = 0; i < list.count; ++i) {
    const WeightRow& row = list.rows[i];
    py::dict one;
    one["tile"] = row.tile, one["isa"] = row.isa, one["kind"] = row.kind;
    one["rows"] = row.rows, one["columns"] = row.columns, one["deep"] = row.deep;
    one["first_arch"] = row.first_arch, one["last_arch"] = row.last_arch;
    result.append(one);
  }
  return result;
}

bool aligned(const void* address) { return address && reinterpret_cast<uintptr_t>(address) % 16 == 0; }

void check(const WeightRow& row, const WeightProduct& p, int device) {
  const int arch = architecture(device);
  const Weights& w = p.w;
  require(arch >= row.first_arch && arch <= row.last_arch, "weights: this GPU cannot run that row");
  require(p.m > 0 && w.n > 0 && w.k > 0 && w.k < int64_t(1) << 28 && w.n < int64_t(1) << 31, "weights: a size");
  require(p.m < int64_t(1) << 31 && (!p.offsets || (p.experts > 0 && p.experts < 65536)), "weights: experts");
  require(ceil_to(p.m, row.rows) + p.experts < 65536, "weights: more rows than a grid has");
  require(w.bits == 4 || w.bits == 8, "weights: 4 or 8 bits");
  require(w.group > 0 && w.group % 32 == 0 && w.groups == ceil_to(w.k, w.group), "weights: groups of a multiple of 32");
  const std::string kind = row.kind;
  const bool real = kind == "floats" ? p.x_type <= kBf16 : p.x_type == kF16 || p.x_type == kBf16;
  require(p.x_type >= kF32 && (kind == "codes" ? p.x_type == kS8 : real), "weights: the type of x");
  require(w.scale_type >= kF32 && w.scale_type <= kBf16, "weights: the type of scales");
  require(w.scales || (kind == "codes" && (w.bits == 4 ? w.factors || w.groups == 1 : w.groups == 1)),
          "weights: no scales");
  require(aligned(p.x) && p.x_pitch % 16 == 0 && aligned(w.codes), "weights: not aligned to 16");
  for (const void* of_groups : {w.scales, static_cast<const void*>(w.zeros), static_cast<const void*>(w.factors)})
    require(of_groups == nullptr || aligned(of_groups), "weights: not aligned to 16");
  const int item = p.x_type == kF32 ? 4 : p.x_type >= kS8 ? 1 : 2;
  require(p.m == 1 || p.x_pitch >= w.k * item, "weights: rows overlap");
  const Epilogue& e = p.epilogue;
  const bool floats = e.output >= kF32 && e.output <= kBf16, scaled = e.a_scale && e.w_scale;
  require(e.m == p.m && e.n == w.n && e.k == w.k && e.out && e.output <= kU8, "weights: the epilogue");
  require(w.scales ? floats : e.output == kS32 || scaled || (e.output >= kS8 && e.m_values), "weights: the epilogue");
}

void product(int index, const WeightProduct& p, uintptr_t workspace, uintptr_t stream, int device) {
  const WeightRow& row = row_at(index);
  check(row, p, device);
  const OnDevice there(device);
  require(workspace || weight_workspace(row, p) == 0, "weights: no workspace");
  run_weights(row, p, reinterpret_cast<void*>(workspace), reinterpret_cast<Stream>(stream));
}

}  // namespace

void bind_weights(py::module_& m) {
  bind_structs(m);
  m.def("weight_rows", &rows, "Every product with packed weights of this build, as data.");
  m.def("weight_product", &product, py::arg("row"), py::arg("product"), py::arg("workspace"), py::arg("stream"),
        py::arg("device"), "One of them. Nothing waits for the device.");
  m.def(
      "weight_workspace",
      [](int index, const WeightProduct& p, int device) {
        const OnDevice there(device);
        return weight_workspace(row_at(index), p);
      },
      py::arg("row"), py::arg("product"), py::arg("device"), "Bytes of scratch that `weight_product` needs.");
}

}  // namespace qk::cuda
