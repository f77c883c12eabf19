"""A differentially private optimizer around any :mod:`torch.optim` optimizer."""

from dp.optimizer._bias_correction import AdamBiasCorrection
from dp.optimizer._dp_optimizer import DPOptimizer
from dp.optimizer._joint_optimizer import JointOptimizer


__all__ = ("AdamBiasCorrection", "DPOptimizer", "JointOptimizer")
