"""The measured shapes. They live in the package, where an installed qkernels has them too; this is the same list."""

from qkernels.bench.shapes import INT4_LINEAR, INT8_CONV, INT8_GEMM, QUICK, Conv, Gemm, Int4, select

__all__ = ["INT4_LINEAR", "INT8_CONV", "INT8_GEMM", "QUICK", "Conv", "Gemm", "Int4", "select"]
