// Python's door to the GPU kernels. Pointers are integers: arrays belong to their own library, which made them on the
// device. Checked here is what a kernel would trip over; meaning is checked in Python (qkernels/backends/cuda.py).
// Built twice: `_cuda` by nvcc with the CUDA runtime, `_cuda_emulated` for a CPU with the emulator.
#include <pybind11/stl.h>

#include "bind.h"
#include "device.h"
#include "rows.h"
#ifdef QK_CUDA_EMULATED
#include "emulator/async.h"
#define QK_MODULE _cuda_emulated
#else
#define QK_MODULE _cuda
#endif
#define QK_PYBIND11_MODULE(name, variable) PYBIND11_MODULE(name, variable)

namespace qk::cuda {

#ifdef QK_CUDA_EMULATED
static int architectures = 90;  // what the emulated device claims to be; tests change it
Devices devices() { return {1, ""}; }
int architecture(int) { return architectures; }
OnDevice::OnDevice(int) {}
OnDevice::~OnDevice() {}
#endif

namespace {

void bind_epilogue(py::module_& m) {
  auto bound = py::class_<Epilogue>(m, "Epilogue").def(py::init([] { return Epilogue{}; }));
  QK_NUMBER(Epilogue, m);
  QK_NUMBER(Epilogue, n);
  QK_NUMBER(Epilogue, k);
  QK_NUMBER(Epilogue, output);
  QK_POINTER(Epilogue, out);
  QK_NUMBER(Epilogue, out_batch);
  QK_NUMBER(Epilogue, out_row);
  QK_POINTER(Epilogue, a_zero);
  QK_POINTER(Epilogue, a_sums);
  QK_POINTER(Epilogue, w_zero);
  QK_POINTER(Epilogue, w_sums);
  QK_POINTER(Epilogue, bias);
  QK_NUMBER(Epilogue, column_batch);
  QK_NUMBER(Epilogue, bias_row);
  QK_POINTER(Epilogue, a_scale);
  QK_POINTER(Epilogue, w_scale);
  QK_POINTER(Epilogue, float_bias);
  QK_NUMBER(Epilogue, a_scale_step);
  QK_NUMBER(Epilogue, w_scale_step);
  QK_NUMBER(Epilogue, clamps);
  QK_NUMBER(Epilogue, clamp_low);
  QK_NUMBER(Epilogue, clamp_high);
  QK_NUMBER(Epilogue, curve);
  QK_NUMBER(Epilogue, rounding);
  QK_POINTER(Epilogue, m_values);
  QK_POINTER(Epilogue, e_values);
  QK_NUMBER(Epilogue, m_row);
  QK_NUMBER(Epilogue, m_column);
  QK_NUMBER(Epilogue, y_scale);
  QK_NUMBER(Epilogue, y_zero);
  QK_NUMBER(Epilogue, low);
  QK_NUMBER(Epilogue, high);
  QK_POINTER(Epilogue, residual);
  QK_NUMBER(Epilogue, residual_type);
  QK_NUMBER(Epilogue, residual_scale);
  QK_NUMBER(Epilogue, residual_zero);
  QK_POINTER(Epilogue, found_scale);
  QK_POINTER(Epilogue, found_zero);
}

void bind_gemm(py::module_& m) {
  auto bound = py::class_<Gemm>(m, "Gemm").def(py::init([] { return Gemm{}; }));
  QK_NUMBER(Gemm, batches);
  QK_NUMBER(Gemm, m);
  QK_NUMBER(Gemm, n);
  QK_NUMBER(Gemm, k);
  QK_POINTER(Gemm, a);
  QK_NUMBER(Gemm, a_pitch);
  QK_NUMBER(Gemm, a_batch);
  QK_NUMBER(Gemm, a_signed);
  QK_POINTER(Gemm, w);
  QK_NUMBER(Gemm, w_pitch);
  QK_NUMBER(Gemm, w_batch);
  QK_NUMBER(Gemm, w_signed);
}

void bind_operands(py::module_& m) {
  {
    auto bound = py::class_<RearrangeArgs>(m, "RearrangeArgs").def(py::init([] { return RearrangeArgs{}; }));
    QK_POINTER(RearrangeArgs, from);
    QK_NUMBER(RearrangeArgs, batch_step);
    QK_NUMBER(RearrangeArgs, row_step);
    QK_NUMBER(RearrangeArgs, k_step);
    QK_NUMBER(RearrangeArgs, batches);
    QK_NUMBER(RearrangeArgs, rows);
    QK_NUMBER(RearrangeArgs, k);
    QK_POINTER(RearrangeArgs, to);
    QK_NUMBER(RearrangeArgs, pitch);
  }
  {
    auto bound = py::class_<SumsArgs>(m, "SumsArgs").def(py::init([] { return SumsArgs{}; }));
    QK_POINTER(SumsArgs, from);
    QK_NUMBER(SumsArgs, rows);
    QK_NUMBER(SumsArgs, k);
    QK_NUMBER(SumsArgs, pitch);
    QK_NUMBER(SumsArgs, is_signed);
    QK_POINTER(SumsArgs, sums);
  }
}

template <class Args, class Bound>
void bind_place(Bound& bound) {
  bound.def_property(
      "place",
      [](const Args& self) {
        return py::make_tuple(self.place.rows, self.place.columns, self.place.repeat, self.place.group);
      },
      [](Args& self, const std::array<int64_t, 4>& v) {
        require(v[0] > 0 && v[1] > 0 && v[2] > 0 && v[3] > 0, "a placement is four positive numbers");
        self.place = {v[0], v[1], v[2], v[3]};
      });
}

void bind_elementwise(py::module_& m) {
  {
    auto bound = py::class_<QuantizeArgs>(m, "QuantizeArgs").def(py::init([] { return QuantizeArgs{}; }));
    QK_POINTER(QuantizeArgs, x);
    QK_NUMBER(QuantizeArgs, x_type);
    QK_NUMBER(QuantizeArgs, rows);
    QK_NUMBER(QuantizeArgs, inner);
    QK_POINTER(QuantizeArgs, scale);
    QK_POINTER(QuantizeArgs, zero);
    QK_POINTER(QuantizeArgs, reciprocal);
    QK_NUMBER(QuantizeArgs, low);
    QK_NUMBER(QuantizeArgs, high);
    QK_POINTER(QuantizeArgs, out);
    QK_NUMBER(QuantizeArgs, out_bits);
    bind_place<QuantizeArgs>(bound);
  }
  {
    auto bound = py::class_<DequantizeArgs>(m, "DequantizeArgs").def(py::init([] { return DequantizeArgs{}; }));
    QK_POINTER(DequantizeArgs, codes);
    QK_NUMBER(DequantizeArgs, code_bits);
    QK_NUMBER(DequantizeArgs, is_signed);
    QK_NUMBER(DequantizeArgs, rows);
    QK_NUMBER(DequantizeArgs, inner);
    QK_POINTER(DequantizeArgs, scale);
    QK_POINTER(DequantizeArgs, zero);
    QK_POINTER(DequantizeArgs, out);
    QK_NUMBER(DequantizeArgs, out_type);
    bind_place<DequantizeArgs>(bound);
  }
  {
    auto bound = py::class_<RequantizeArgs>(m, "RequantizeArgs").def(py::init([] { return RequantizeArgs{}; }));
    QK_POINTER(RequantizeArgs, acc);
    QK_NUMBER(RequantizeArgs, rows);
    QK_NUMBER(RequantizeArgs, inner);
    QK_NUMBER(RequantizeArgs, rounding);
    QK_POINTER(RequantizeArgs, m_values);
    QK_POINTER(RequantizeArgs, e_values);
    QK_POINTER(RequantizeArgs, bias);
    QK_POINTER(RequantizeArgs, zero);
    QK_NUMBER(RequantizeArgs, low);
    QK_NUMBER(RequantizeArgs, high);
    QK_POINTER(RequantizeArgs, out);
    QK_NUMBER(RequantizeArgs, out_bits);
    bind_place<RequantizeArgs>(bound);
  }
  {
    auto bound = py::class_<DynamicArgs>(m, "DynamicArgs").def(py::init([] { return DynamicArgs{}; }));
    QK_POINTER(DynamicArgs, x);
    QK_NUMBER(DynamicArgs, x_type);
    QK_NUMBER(DynamicArgs, rows);
    QK_NUMBER(DynamicArgs, inner);
    QK_NUMBER(DynamicArgs, group);
    QK_NUMBER(DynamicArgs, low);
    QK_NUMBER(DynamicArgs, high);
    QK_POINTER(DynamicArgs, scale);
    QK_POINTER(DynamicArgs, zero);
    QK_POINTER(DynamicArgs, sums);
    QK_POINTER(DynamicArgs, out);
    QK_NUMBER(DynamicArgs, out_pitch);
    QK_NUMBER(DynamicArgs, out_bits);
  }
}

void bind_extremes(py::module_& m) {
  {
    auto bound = py::class_<ExtremesArgs>(m, "ExtremesArgs").def(py::init([] { return ExtremesArgs{}; }));
    QK_POINTER(ExtremesArgs, x);
    QK_NUMBER(ExtremesArgs, x_type);
    QK_NUMBER(ExtremesArgs, rows);
    QK_NUMBER(ExtremesArgs, inner);
    QK_POINTER(ExtremesArgs, ends);
    bind_place<ExtremesArgs>(bound);
  }
  {
    auto bound = py::class_<FoundArgs>(m, "FoundArgs").def(py::init([] { return FoundArgs{}; }));
    QK_POINTER(FoundArgs, ends);
    QK_NUMBER(FoundArgs, places);
    QK_NUMBER(FoundArgs, low);
    QK_NUMBER(FoundArgs, high);
    QK_NUMBER(FoundArgs, middle);
    QK_NUMBER(FoundArgs, is_symmetric);
    QK_NUMBER(FoundArgs, scale_type);
    QK_POINTER(FoundArgs, scale);
    QK_POINTER(FoundArgs, reciprocal);
    QK_POINTER(FoundArgs, zero);
    QK_POINTER(FoundArgs, factors);
    QK_NUMBER(FoundArgs, groups);
    QK_NUMBER(FoundArgs, step);
  }
  {
    auto bound = py::class_<PrepareArgs>(m, "PrepareArgs").def(py::init([] { return PrepareArgs{}; }));
    QK_NUMBER(PrepareArgs, rows);
    QK_NUMBER(PrepareArgs, n);
    QK_POINTER(PrepareArgs, a_scale);
    QK_POINTER(PrepareArgs, w_scale);
    QK_NUMBER(PrepareArgs, a_scale_step);
    QK_NUMBER(PrepareArgs, w_scale_step);
    QK_POINTER(PrepareArgs, float_bias);
    QK_POINTER(PrepareArgs, bias);
    QK_NUMBER(PrepareArgs, rounding);
    QK_NUMBER(PrepareArgs, single);
    QK_NUMBER(PrepareArgs, y_scale);
    QK_POINTER(PrepareArgs, m_values);
    QK_POINTER(PrepareArgs, e_values);
  }
  {
    auto bound = py::class_<WidenArgs>(m, "WidenArgs").def(py::init([] { return WidenArgs{}; }));
    QK_POINTER(WidenArgs, sums);
    QK_NUMBER(WidenArgs, count);
    QK_NUMBER(WidenArgs, adds);
    QK_POINTER(WidenArgs, out);
  }
  {
    auto bound = py::class_<FiniteArgs>(m, "FiniteArgs").def(py::init([] { return FiniteArgs{}; }));
    QK_POINTER(FiniteArgs, x);
    QK_NUMBER(FiniteArgs, x_type);
    QK_NUMBER(FiniteArgs, count);
    QK_POINTER(FiniteArgs, found);
  }
  {
    auto bound = py::class_<PackArgs>(m, "PackArgs").def(py::init([] { return PackArgs{}; }));
    QK_POINTER(PackArgs, codes);
    QK_POINTER(PackArgs, packed);
    QK_NUMBER(PackArgs, rows);
    QK_NUMBER(PackArgs, inner);
    QK_NUMBER(PackArgs, bits);
    QK_NUMBER(PackArgs, is_signed);
    QK_NUMBER(PackArgs, unpacks);
  }
}

// ---------------------------------------------------------------- calls
const Row& row_at(int index) {
  const RowList list = all_rows();
  if (index < 0 || index >= list.count) throw py::index_error("no such row");
  return list.rows[index];
}

py::list rows() {
  py::list result;
  const RowList list = all_rows();
  for (int i = 0; i < list.count; ++i) {
    const Row& row = list.rows[i];
    py::dict one;
    one["tile"] = row.tile;
    one["isa"] = row.isa;
    one["rows"] = row.rows;
    one["columns"] = row.columns;
    one["step"] = row.step;
    one["first_arch"] = row.first_arch;
    one["last_arch"] = row.last_arch;
    result.append(one);
  }
  return result;
}

bool aligned(const void* address, int64_t pitch, int64_t k) {
  return address && reinterpret_cast<uintptr_t>(address) % 16 == 0 && pitch % 16 == 0 && pitch >= k;
}

void check_gemm(const Row& row, const Gemm& g, const Epilogue& e, int device) {
  const int arch = architecture(device);
  require(arch >= row.first_arch && arch <= row.last_arch, "gemm: this GPU cannot run that row");
  require(g.batches > 0 && g.m > 0 && g.n > 0 && g.k > 0 && g.k < int64_t(1) << 30, "gemm: a size is out of range");
  require(g.m < int64_t(1) << 31 && g.n < int64_t(1) << 31 && g.batches <= 1023, "gemm: a size is out of range");
  const int64_t along_y = row.swapped ? ceil_to(g.m, row.rows) : ceil_to(g.n, row.columns);
  require(along_y < 65536, "gemm: more tiles than a grid has");
  require(aligned(g.a, g.a_pitch, g.k) && aligned(g.w, g.w_pitch, g.k) && g.a_batch % 16 == 0 && g.w_batch % 16 == 0,
          "gemm: operands must be aligned to 16 bytes");
  require(e.m == g.m && e.n == g.n && e.k == g.k && e.out && e.output <= kU16, "gemm: the epilogue does not fit");
  require(!e.residual || (e.residual_type >= kF32 && e.residual_type <= kU8), "gemm: the type of the residual");
  require((!e.a_zero || e.w_sums) && (!e.w_zero || e.a_sums), "gemm: zero points need the sums of the other operand");
  require(e.output == kS32 || (e.a_scale && e.w_scale) || (e.output >= kS8 && e.m_values), "gemm: no scales");
}

void gemm(int index, const Gemm& g, const Epilogue& e, uintptr_t workspace, uintptr_t stream, int device) {
  const Row& row = row_at(index);
  check_gemm(row, g, e, device);
  const OnDevice there(device);
  require(workspace || workspace_bytes(row, g, e) == 0, "gemm: no workspace");
  run_gemm(row, g, e, reinterpret_cast<void*>(workspace), reinterpret_cast<Stream>(stream));
}

int64_t workspace(int index, const Gemm& g, const Epilogue& e, int device) {
  const OnDevice there(device);
  return workspace_bytes(row_at(index), g, e);
}

template <class Args, void (*kRun)(const Args&, Stream)>
void call(const Args& args, uintptr_t stream, int device) {
  const OnDevice there(device);
  kRun(args, reinterpret_cast<Stream>(stream));
}

#ifdef QK_CUDA_EMULATED
void bind_emulator(py::module_& m) {
  m.def("seed", [](unsigned seed) { emulator::machine.seed = seed; }, "Of every random choice of later launches.");
  m.def("pretend", [](int arch) { architectures = arch; }, "The compute capability that the device claims.");
  m.def(
      "allow",
      [](uintptr_t begin, size_t bytes, bool writeable) {
        const auto* from = reinterpret_cast<const uint8_t*>(begin);
        emulator::machine.regions.push_back({from, from + bytes, writeable});
      },
      "Global memory that kernels may touch. Once one is named, all other is refused.");
  m.def("forget", [] { emulator::machine.regions.clear(); }, "No region is named any more, and any memory goes.");
  m.def(
      "counters",
      [] {
        const auto& c = emulator::machine.counters;
        py::dict result;
        result["launches"] = c.launches, result["switches"] = c.switches, result["products"] = c.products;
        result["accesses"] = c.accesses, result["conflicts"] = c.conflicts;
        return result;
      },
      "What happened since the last reset.");
  m.def("reset_counters", [] { emulator::machine.counters = {}; });
}
#endif

}  // namespace
}  // namespace qk::cuda

QK_PYBIND11_MODULE(QK_MODULE, m) {
  using namespace qk::cuda;
  m.doc() = "The GPU half of qkernels: kernels and their launches. Private; see csrc/cuda/README.md.";
  bind_epilogue(m);
  bind_gemm(m);
  bind_operands(m);
  bind_elementwise(m);
  bind_extremes(m);
  bind_weights(m);
  bind_conv(m);
  m.def("rows", &rows, "Every product kernel of this build, as data.");
  m.def(
      "devices",
      [] {
        const Devices d = devices();
        return py::make_tuple(d.count, d.missing);
      },
      "(count, why none)");
  m.def("architecture", &architecture, py::arg("device"), "90 for compute capability 9.0.");
  m.def("gemm", &gemm, py::arg("row"), py::arg("gemm"), py::arg("epilogue"), py::arg("workspace"), py::arg("stream"),
        py::arg("device"), "One product on one row. Nothing waits for the device.");
  m.def("workspace", &workspace, py::arg("row"), py::arg("gemm"), py::arg("epilogue"), py::arg("device"),
        "Bytes of scratch that `gemm` needs.");
  m.def("rearrange", &call<RearrangeArgs, rearrange_operand>);
  m.def("sum_rows", &call<SumsArgs, sum_operand_rows>);
  m.def("find_extremes", &call<ExtremesArgs, find_extremes>);
  m.def("scales_of_extremes", &call<FoundArgs, scales_of_extremes>);
  m.def("prepare_scales", &call<PrepareArgs, prepare_scales>);
  m.def("add_wide", &call<WidenArgs, add_wide>);
  m.def("quantize", &call<QuantizeArgs, quantize_codes>);
  m.def("dequantize", &call<DequantizeArgs, dequantize_codes>);
  m.def("requantize", &call<RequantizeArgs, requantize_sums>);
  m.def("dynamic_quantize", &call<DynamicArgs, quantize_ranges>);
  m.def("pack_codes", &call<PackArgs, pack_codes>);
  m.def("find_not_finite", &call<FiniteArgs, find_not_finite>);
#ifdef QK_CUDA_EMULATED
  m.attr("emulated") = true;
  bind_emulator(m);
#else
  m.attr("emulated") = false;
#endif
}
