"""Per-example gradients of any model, read from its autograd graph."""

from dp.per_sample._engine import Engine, PerSampleGradients


__all__ = ("Engine", "PerSampleGradients")
