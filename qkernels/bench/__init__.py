"""Measuring: this machine's limits, the shapes, and who else computes them. `python -m qkernels bench`; docs/performance.md."""
