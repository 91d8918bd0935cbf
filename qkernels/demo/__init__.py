"""A real network on real images, float against int8. `python -m qkernels demo`."""
