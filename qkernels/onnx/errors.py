"""What can be wrong with a model, in words that name the node."""

from __future__ import annotations


class ModelError(ValueError):
    """The file or the graph is no valid ONNX model: truncated, of another opset, a value that nothing makes, …"""


class UnsupportedError(ModelError, NotImplementedError):
    """The model is valid, and an operator, an attribute or a type of it is not among those that can be run."""
