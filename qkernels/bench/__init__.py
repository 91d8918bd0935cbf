"""Measuring: this machine's limits, our kernels, other libraries. `python -m qkernels bench`, docs/performance.md."""
