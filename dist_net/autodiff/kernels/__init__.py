"""Computations on arrays that take several NumPy calls, independent of expressions."""
