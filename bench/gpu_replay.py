"""The same fused products on the emulator and on the hardware: every kernel that the GPU runs, every output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

OUTPUTS = ("int32", "float32", "float16", "bfloat16", "int8", "uint8")


class OnDevice:
    """What cuda_emulator.Memory is, on the GPU: torch keeps the memory."""

    def __init__(self, torch: Any):
        self.torch, self.kept = torch, []

    def put(self, x: np.ndarray) -> int:
        tensor = self.torch.from_numpy(np.ascontiguousarray(x).view(np.uint8).reshape(-1).copy()).cuda()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def get(self, index: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        return self.kept[index].cpu().numpy().view(dtype).reshape(shape)


def on_hardware(
    torch: Any, module: Any, row: int, a: np.ndarray, w: np.ndarray, output: str, fields: dict
) -> np.ndarray:
    """One product as cuda_emulator.product makes it, on the device. a (1, m, k), w (1, n, k), k a multiple of 16."""
    memory = OnDevice(torch)
    (_, m, k), n = a.shape, w.shape[1]
    call, epilogue = module.Gemm(), module.Epilogue()
    call.batches, call.m, call.n, call.k = 1, m, n, k
    call.a, call.a_pitch, call.w, call.w_pitch = memory.put(a), k, memory.put(w), k
    call.a_signed, call.w_signed = a.dtype == np.int8, w.dtype == np.int8
    dtype = np.dtype("uint16" if output == "bfloat16" else output)
    epilogue.m, epilogue.n, epilogue.k, epilogue.output = m, n, k, OUTPUTS.index(output)
    at = len(memory.kept)
    epilogue.out = memory.put(np.zeros((m, n), dtype))
    epilogue.out_row, epilogue.out_batch = n, m * n
    for name, value in fields.items():
        setattr(epilogue, name, memory.put(value) if isinstance(value, np.ndarray) else value)
    need = module.workspace(row, call, epilogue, 0)
    scratch = memory.put(np.zeros(max(need, 16), np.uint8))
    module.gemm(row, call, epilogue, scratch, torch.cuda.current_stream().cuda_stream, 0)
    torch.cuda.synchronize()
    return memory.get(at, dtype, (m, n))


def pairs(torch: Any, emulator: Any, harness: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, the hardware's answer, the emulator's)."""
    from qkernels.backends import cuda

    rng, module = np.random.default_rng(4), cuda._cuda
    arch = module.architecture(0)
    harness._cuda_emulated = emulator
    emulator.pretend(arch)
    for row, kernel in enumerate(module.rows()):
        if not kernel["first_arch"] <= arch <= kernel["last_arch"]:
            continue
        m, n, k = kernel["rows"] + 3, kernel["columns"] + 16, 2 * kernel["step"] + 48
        a = rng.integers(0, 256, (1, m, k)).astype(np.uint8)
        w = rng.integers(-128, 128, (1, n, k)).astype(np.int8)
        floats = {
            "a_scale": np.exp2(rng.uniform(-12, -6, m)).astype(np.float32), "a_scale_step": 1,
            "w_scale": np.exp2(rng.uniform(-12, -6, n)).astype(np.float32), "w_scale_step": 1,
            "float_bias": rng.normal(size=n).astype(np.float32),
        }  # fmt: skip
        codes = {
            "m_values": np.exp2(rng.uniform(-16, -8, n)).astype(np.float32),
            "m_column": 1,
            "low": -100,
            "high": 110,
        }
        for output in OUTPUTS:
            fields: dict[str, Any] = {} if output == "int32" else codes if output.endswith("int8") else floats
            if output == "uint8":
                fields = fields | {"low": 0, "high": 255, "y_zero": 128}
            ours = on_hardware(torch, module, row, a, w, output, fields)
            theirs = harness.product(row, a, w, output, **fields)[0]
            yield f"{kernel['tile']} {kernel['isa']} {output}", ours, np.ascontiguousarray(theirs)
