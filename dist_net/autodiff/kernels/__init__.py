"""Computations on arrays that take more than one call of NumPy; they know no expressions."""
