"""Differentially private optimisation for PyTorch.

Plan a run from public numbers, draw its batches, and wrap the optimizer:

>>> import torch
>>> import dp
>>> model = torch.nn.Linear(3, 1)
>>> dataset = torch.utils.data.TensorDataset(torch.randn(50, 3), torch.randn(50))
>>> plan = dp.plan_for(
...     target_epsilon=3.0,
...     target_delta=1e-5,
...     sampling_probability=0.2,
...     steps=10,
...     expected_batch_size=10,
...     max_grad_norm=1.0,
... )
>>> loader = plan.loader(dataset)
>>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
>>> optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)
>>> def loss_fn(batch):
...     x, y = batch
...     return (model(x).squeeze(1) - y).square()
>>> for batch in loader:
...     optimizer.backward(loss_fn, batch)
...     optimizer.step()
>>> optimizer.guarantee().epsilon <= 3.0
True

Names are loaded when they are first used, so that ``import dp`` and the accountant
need no torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

from dp.exceptions import missing_extra
from forwarding import __version__ as __version__


if TYPE_CHECKING:
    from dp import audit
    from dp.accounting import (
        Guarantee,
        NegativeBinomialRuns,
        PoissonRuns,
        Query,
        Release,
        Risk,
    )
    from dp.calibration import RiskTarget
    from dp.certificate import Certificate, TuningCertificate, compose, verify
    from dp.checking import CheckReport, check
    from dp.clipping import (
        AutomaticClipping,
        FlatClipping,
        PerGroupClipping,
        PerLayerClipping,
        QuantileClipping,
        ScaledClipping,
        SparseClipping,
    )
    from dp.evidence import Evidence, looking
    from dp.exceptions import (
        BudgetExhaustedError,
        EvidenceWarning,
        LedgerError,
        PrivacyError,
        RankFailedError,
        RanksDivergedError,
        SampleMixingError,
        SamplingMismatchError,
        UnsupportedOperationError,
        WrongGradientError,
        WrongNoiseError,
        WrongReleaseError,
    )
    from dp.integrations.private import private
    from dp.micro_batches import MicroBatches, split_batch
    from dp.noise import BandedNoise, GaussianNoise
    from dp.optimizer import AdamBiasCorrection, DPOptimizer, JointOptimizer
    from dp.per_sample import compile_backend
    from dp.plan import PrivacyPlan, plan_for
    from dp.sampling import (
        AllocationLoader,
        CyclicPoisson,
        CyclicPoissonLoader,
        DisjointBatches,
        DisjointLoader,
        PoissonLoader,
        PoissonSampling,
        RandomAllocation,
        TruncatedPoissonSampling,
        Unamplified,
        UnamplifiedLoader,
    )
    from dp.schedule import Schedule
    from dp.selection import tune
    from dp.wrapping import wrap_class

__all__ = (
    "AdamBiasCorrection",
    "AllocationLoader",
    "AutomaticClipping",
    "BandedNoise",
    "BudgetExhaustedError",
    "Certificate",
    "CheckReport",
    "CyclicPoisson",
    "CyclicPoissonLoader",
    "DPOptimizer",
    "DisjointBatches",
    "DisjointLoader",
    "Evidence",
    "EvidenceWarning",
    "FlatClipping",
    "GaussianNoise",
    "Guarantee",
    "JointOptimizer",
    "LedgerError",
    "MicroBatches",
    "NegativeBinomialRuns",
    "PerGroupClipping",
    "PerLayerClipping",
    "PoissonLoader",
    "PoissonRuns",
    "PoissonSampling",
    "PrivacyError",
    "PrivacyPlan",
    "QuantileClipping",
    "Query",
    "RandomAllocation",
    "RankFailedError",
    "RanksDivergedError",
    "Release",
    "Risk",
    "RiskTarget",
    "SampleMixingError",
    "SamplingMismatchError",
    "ScaledClipping",
    "Schedule",
    "SparseClipping",
    "TruncatedPoissonSampling",
    "TuningCertificate",
    "Unamplified",
    "UnamplifiedLoader",
    "UnsupportedOperationError",
    "WrongGradientError",
    "WrongNoiseError",
    "WrongReleaseError",
    "audit",
    "check",
    "compile_backend",
    "compose",
    "looking",
    "plan_for",
    "private",
    "split_batch",
    "tune",
    "verify",
    "wrap_class",
)

_HOME: Final = {
    name: module
    for module, names in {
        "accounting": "Guarantee NegativeBinomialRuns PoissonRuns Query Release Risk",
        "calibration": "RiskTarget",
        "certificate": "Certificate TuningCertificate compose verify",
        "checking": "CheckReport check",
        "clipping": "AutomaticClipping FlatClipping PerGroupClipping PerLayerClipping"
        " QuantileClipping ScaledClipping SparseClipping",
        "evidence": "Evidence looking",
        "exceptions": "BudgetExhaustedError EvidenceWarning LedgerError PrivacyError"
        " RankFailedError RanksDivergedError SampleMixingError SamplingMismatchError"
        " UnsupportedOperationError WrongGradientError WrongNoiseError"
        " WrongReleaseError",
        "integrations.private": "private",
        "micro_batches": "MicroBatches split_batch",
        "noise": "BandedNoise GaussianNoise",
        "optimizer": "AdamBiasCorrection DPOptimizer JointOptimizer",
        "per_sample": "compile_backend",
        "plan": "PrivacyPlan plan_for",
        "sampling": "AllocationLoader CyclicPoisson CyclicPoissonLoader DisjointBatches"
        " DisjointLoader PoissonLoader PoissonSampling RandomAllocation"
        " TruncatedPoissonSampling Unamplified UnamplifiedLoader",
        "schedule": "Schedule",
        "selection": "tune",
        "wrapping": "wrap_class",
    }.items()
    for name in names.split()
}
_WRAPPED: Final = "dp.plan_for(...), plan.loader and dp.DPOptimizer, or dp.private"
_OF_OPACUS: Final = {
    "PrivacyEngine": _WRAPPED,
    "make_private": _WRAPPED,
    "make_private_with_epsilon": _WRAPPED,
    "BatchMemoryManager": "dp.split_batch, or dp.MicroBatches",
    "GradSampleModule": "the model itself, as it is",
    "ModuleValidator": "dp.check(model, loss_fn, batch)",
}
_MODULES: Final = {"audit", "distributed", "ledger", "query", *_HOME.values()}

if (
    not TYPE_CHECKING
):  # pragma: no branch -- type checkers would take every name for one that exists.

    def __getattr__(name: str) -> object:
        """Load a public name, once (PEP 562)."""
        if name in _MODULES:
            return _load(name)
        if name not in _HOME:
            told = f"module {__name__!r} has no attribute {name!r}"
            if name in _OF_OPACUS:
                told += f"; in place of what Opacus has, use {_OF_OPACUS[name]}"
            # With these two, Python asks after the name that was meant.
            raise AttributeError(told, name=name, obj=sys.modules[__name__])
        value = getattr(_load(_HOME[name]), name)
        globals()[name] = value
        return value

    def _load(module: str) -> object:
        """Import a module of this package, or say which extra brings what it needs."""
        try:
            return import_module(f"{__name__}.{module}")
        except ModuleNotFoundError as error:
            told = missing_extra(f"dp.{module}", error)
            if told is None:
                raise
            raise ModuleNotFoundError(told, name=error.name) from error

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES, *__all__})
