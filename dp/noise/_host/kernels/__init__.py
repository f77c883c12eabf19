"""Loops that numba compiles; imported only where numba is installed."""
