"""Every operator: importing this fills the registry."""

from qkernels.onnx import between, convolutions, floats, images, lstm, moves, products, quantizers

MODULES = (between, convolutions, floats, images, lstm, moves, products, quantizers)
