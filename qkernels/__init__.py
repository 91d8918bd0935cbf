"""qkernels: fast, exact integer kernels for Python.

>>> import numpy as np, qkernels as qk
>>> a = np.full((2, 3), -128, np.int8)
>>> qk.matmul(a, a.T)                       # int8 × int8 → int32, never wraps
array([[49152, 49152],
       [49152, 49152]], dtype=int32)
"""

from qkernels.config import show_config
from qkernels.conv_weight import PackedConv
from qkernels.dispatch import explain, kernels, use
from qkernels.kernel import Kernel, NoKernelError
from qkernels.library import get_cmake_dir, get_include, get_library
from qkernels.ops.add import add
from qkernels.ops.calibrate import calibrate
from qkernels.ops.concat import concat
from qkernels.ops.conv2d import conv1d, conv2d, conv3d
from qkernels.ops.conv_transpose2d import conv_transpose2d
from qkernels.ops.dequantize import dequantize
from qkernels.ops.dynamic_quantize import dynamic_quantize
from qkernels.ops.grouped_linear import grouped_linear
from qkernels.ops.linear import linear, pack_linear
from qkernels.ops.lookup import clamp, lookup
from qkernels.ops.matmul import matmul
from qkernels.ops.mul import mul
from qkernels.ops.pack import pack
from qkernels.ops.pack_conv import pack_conv
from qkernels.ops.pools import avg_pool2d, global_avg_pool, max_pool2d
from qkernels.ops.quantization_error import QuantizationError, quantization_error
from qkernels.ops.quantize import fake_quantize, quantize
from qkernels.ops.requantize import requantize
from qkernels.ops.softmax import softmax
from qkernels.ops.topk import topk
from qkernels.patch import patch_numpy
from qkernels.tensor import QTensor
from qkernels.threads import get_num_threads, register_threadpoolctl, set_num_threads
from qkernels.tune import tune
from qkernels.weight import PackedLinear, PackedMatrix

__version__ = "0.1.0"

__all__ = [
    "Kernel",
    "NoKernelError",
    "PackedConv",
    "PackedLinear",
    "PackedMatrix",
    "QTensor",
    "QuantizationError",
    "add",
    "avg_pool2d",
    "calibrate",
    "clamp",
    "concat",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose2d",
    "dequantize",
    "dynamic_quantize",
    "explain",
    "fake_quantize",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "get_num_threads",
    "global_avg_pool",
    "grouped_linear",
    "kernels",
    "linear",
    "lookup",
    "matmul",
    "max_pool2d",
    "mul",
    "pack",
    "pack_conv",
    "pack_linear",
    "patch_numpy",
    "quantization_error",
    "quantize",
    "register_threadpoolctl",
    "requantize",
    "set_num_threads",
    "show_config",
    "softmax",
    "topk",
    "tune",
    "use",
]
