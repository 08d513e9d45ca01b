"""Kernels on arrays that are more than one call of NumPy: convolution, by several algorithms."""
