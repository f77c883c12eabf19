"""Differentially private optimisation for PyTorch."""

__all__ = ()
