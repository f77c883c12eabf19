"""Per-example gradients of any model, read from its autograd graph."""

from dp.per_sample._compile_backend import compile_backend
from dp.per_sample._engine import Engine
from dp.per_sample._grad_sample import clear_grad_samples, from_grad_samples
from dp.per_sample._gradients import JointSums, PerSampleGradients
from dp.per_sample._graph.public import Declared
from dp.per_sample._isolation.own_sums import OwnSums
from dp.per_sample._isolation.verification import Verification
from dp.per_sample._rules.custom import rule_for
from dp.per_sample._rules.table import check_torch


__all__ = (
    "Declared",
    "Engine",
    "JointSums",
    "OwnSums",
    "PerSampleGradients",
    "Verification",
    "clear_grad_samples",
    "compile_backend",
    "from_grad_samples",
    "rule_for",
)

check_torch()
