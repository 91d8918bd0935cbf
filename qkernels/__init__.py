"""qkernels: fast, exact integer kernels for Python."""
