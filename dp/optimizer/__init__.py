"""A differentially private optimizer around any :mod:`torch.optim` optimizer."""

from dp.optimizer._dp_optimizer import DPOptimizer


__all__ = ("DPOptimizer",)
