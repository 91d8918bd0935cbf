"""Products with a QTensor that lies on a GPU: from exact accumulators where both sides are integers (A6).

a (…, m, k), b (…, k, n); scales of rows of a and of columns of b, known here or there. The other operand may be plain
int8 or uint8, of the scale 1, or floats: then the dequantized values are multiplied by their own library.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from qkernels import dispatch
from qkernels.bounds import check_columns
from qkernels.device import DeviceArray, is_on_device, same_device, view
from qkernels.dtypes import FLOAT_TYPES, bits_of, known, limits
from qkernels.kernel import Kernel, Problem
from qkernels.ops.device_tensor import FLOATS, LETTERS, DeviceQTensor, lying, problem_on
from qkernels.ops.on_device import LAYOUT, batched, turned_matrix
from qkernels.ops.weights_on_device import Types
from qkernels.scales import Grain
from qkernels.weight import DeviceMatrix

OP = "matmul"
BYTES = ("int8", "uint8")


def wanted(*operands: Any) -> bool:
    """Is any of them for these functions?"""
    return any(isinstance(x, DeviceQTensor | DeviceMatrix) or is_on_device(x) for x in operands)


class _Side(NamedTuple):
    """An operand of integers: its codes (…, rows, k), and a scale and zero point for each row or for all."""

    codes: DeviceArray
    scale: Any  # of NumPy, or on the device; its shape broadcasts against (…, rows)
    zero: Any
    limits: tuple[int, int]

    @property
    def reach(self) -> int:
        """max |code − zero point|, as far as it is known here."""
        low, high = self.limits
        least, most = (low, high) if is_on_device(self.zero) else (int(np.min(self.zero)), int(np.max(self.zero)))
        return max(high - least, most - low)


class Call:
    """A product, checked. `exact`: of integers on both sides."""

    def __init__(self, a: Any, b: Any, out: Any, dtype: Any, shape: tuple[int, ...]):
        same_device(OP, a=_lies(a), b=_lies(b), out=out)
        self.a, self.b, self.out, self.visible = a, b, out, shape
        self.like = view(_lies(a))
        self.exact = _is_integer(a) and _is_integer(b)
        self.dtype = _result_type(a, b) if dtype is None else known(dtype, FLOAT_TYPES, OP)
        if out is not None:
            found = view(out, self.like)
            if found.shape != shape:
                raise ValueError(f"{OP}: out has shape {found.shape}, the product has {shape}")
            if found.dtype not in FLOAT_TYPES:
                raise TypeError(f"{OP}: out has dtype {found.dtype}, wanted floats: the product of a QTensor is one")
        if self.exact:
            self._place()

    def _place(self) -> None:
        """Both sides as (batch, rows, k); the batch of a is more rows where b has none."""
        left, right = _side(self.a, "a", columns=False), _side(self.b, "b", columns=True)
        self.k = left.codes.shape[-1]
        _check_bound(left, right, self.k)
        lead = np.broadcast_shapes(left.codes.shape[:-2], right.codes.shape[:-2])
        m, n = left.codes.shape[-2], right.codes.shape[-2]
        batch = lead if right.codes.ndim > 2 else ()
        rows = m if batch else math.prod((*lead, m))
        self.sizes = math.prod(batch), rows, n
        self.left = self._factor(left, (*lead, m), batch, rows)
        self.right = self._factor(right, (*batch, n), batch, n)

    def _factor(self, side: _Side, full: tuple[int, ...], batch: tuple[int, ...], rows: int) -> Any:
        one = math.prod(np.shape(side.scale)) == 1
        scale = side.scale.reshape((1,)) if one else side.scale
        there = self.like.constant(scale, "float32", (1,) if one else full)
        zero = None
        if not (isinstance(side.zero, int) and side.zero == 0):
            zero = self.like.constant(side.zero, "int32", full)
        codes = batched(side.codes, batch, rows, self.k)
        return dispatch.Factor(codes, there.shaped(there.size), 0 if one else 1, zero and zero.shaped(zero.size))

    @property
    def empty(self) -> bool:
        return 0 in self.visible or self.k == 0

    def problem(self) -> Problem | str:
        if not self.exact:
            return "handed to the arrays' own matmul: a product of floats and dequantized values"
        if self.empty:
            return "nothing to compute: an empty product needs no kernel"
        types = f"{LETTERS[self.left.codes.dtype]}{LETTERS[self.right.codes.dtype]}s32"
        batch, m, n = self.sizes
        return problem_on(self.like, "gemm", types, batch * m, n, self.k, LAYOUT)

    def run(self) -> Any:
        result = self._exact() if self.exact else _floats(self.a) @ _floats(self.b)
        if self.out is not None:
            self.out[...] = result
            return self.out
        return view(result, self.like).converted(self.dtype).owner

    def _exact(self) -> Any:
        if self.empty:  # A13
            return self.like.constant(0, "float32", self.visible).owner
        direct = self.like.new(self.visible, self.dtype if self.dtype in FLOATS else "float32")
        problem: Any = self.problem()
        kernel: Kernel = dispatch.choose(problem)
        dispatch.fused_on_device(kernel, self.left, self.right, direct.shaped(*self.sizes), lambda epilogue: None)
        return direct.owner


def _lies(x: Any) -> Any:
    return x.data if isinstance(x, DeviceMatrix) else lying(x)


def _is_integer(x: Any) -> bool:
    return isinstance(x, DeviceQTensor | DeviceMatrix) or view(x).dtype in BYTES


def _result_type(a: Any, b: Any) -> str:
    kinds = [view(x).dtype for x in (a, b) if is_on_device(x)]
    return next((kind for kind in kinds if kind in FLOAT_TYPES), "float32")


def _floats(x: Any) -> Any:
    """The values of an operand, float32 (float64 as it is), by its library."""
    if isinstance(x, DeviceQTensor):
        return x.dequantize()
    if isinstance(x, DeviceMatrix):
        x = x.unpack()
    found = view(x)
    return x if found.dtype == "float64" else found.converted("float32").owner


def _side(x: Any, name: str, columns: bool) -> _Side:
    """columns: x is (…, k, n), and its rows in a product are those columns."""
    one = np.ones((1,), np.float32)
    if isinstance(x, DeviceMatrix):
        codes = view(x.data)._replace(shape=(x.shape[1], x.shape[0]))
        return _Side(codes, one, 0, limits(codes.dtype))
    if not isinstance(x, DeviceQTensor):
        codes = view(x)
        return _Side(_rows_of(codes, columns), one, 0, limits(codes.dtype))
    if bits_of(x.dtype) > 8:
        why = "its tensor cores multiply no wider ones"
        raise ValueError(f"{OP}: {name} is of {x.dtype} on a GPU, wanted codes of 8 bits or fewer: {why}")
    if x.group_size is not None:
        raise ValueError(
            f"{OP}: {name} has groups along k on a GPU; linear multiplies by a weight (n, k) that has them"
        )
    scale, zero = (_of_rows(x._grain, value, columns) for value in (x._scale, x._zero))
    return _Side(_rows_of(x.lies(), columns), scale, zero, limits(x.dtype))


def _rows_of(codes: DeviceArray, columns: bool) -> DeviceArray:
    """(…, rows, k)."""
    if codes.ndim == 1:
        return codes._replace(shape=(1, *codes.shape), strides=(0, *codes.strides))
    return turned_matrix(codes) if columns else codes


def _of_rows(grain: Grain, value: Any, columns: bool) -> Any:
    """A value of the scale's shape as one that broadcasts against (…, rows)."""
    if isinstance(value, int) or not grain.scale_shape:
        return value
    aligned = grain.aligned(value)
    if len(grain.shape) == 1:
        return aligned
    return aligned[..., 0, :] if columns else aligned[..., 0]


def _check_bound(left: _Side, right: _Side, k: int) -> None:
    """A2, from the types, and from zero points that are known here."""
    zeros = np.array(left.limits) if is_on_device(left.zero) else np.asarray(left.zero).reshape(-1)
    columns: Any = Types(1, k, right.reach)
    check_columns(OP, left.limits, k, columns, zeros.astype(np.int32), None)
