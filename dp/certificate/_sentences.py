"""The sentences that every certificate has to say, by what its runs were charged."""

from collections.abc import Sequence
from typing import Final

from dp.certificate._run import CertifiedRun


__all__ = ("NOT_COVERED", "assumed", "released")

NOT_COVERED: Final = (
    "Choosing hyper-parameters, early stopping, or a model by looking at private data.",
    "Losses, metrics, batch sizes or gradients that were printed or logged.",
    "Buffers that a forward pass changes, such as running statistics.",
    "How long a step took, and attacks on the machine that trained.",
)


_SAMPLED: Final = (
    "Every batch was drawn by independent coin flips at the stated probability, and"
    " trained on whole and once."
)
_TRUNCATED: Final = (
    "Batches that were drawn larger than stated were reduced to a part chosen at random,"
    " and the number of examples is public and as stated."
)
_UNSAMPLED: Final = "No example was given to one step more than once."
_ALWAYS: Final = (
    "One example's loss depended on that example and the parameters only.",
    "The generator of the noise cannot be predicted.",
)


def assumed(runs: Sequence[CertifiedRun]) -> tuple[str, ...]:
    """Return what has to be assumed of runs with such charges."""
    charges = [charge for run in runs for charge in run.charges]
    amplified = [charge.sampling_probability < 1 for charge in charges]
    sentences = []
    if any(amplified):
        sentences.append(_SAMPLED)
    if any(charge.truncation for charge in charges):
        sentences.append(_TRUNCATED)
    if not charges or not all(amplified):
        sentences.append(_UNSAMPLED)
    return (*sentences, *_ALWAYS)


def released(runs: Sequence[CertifiedRun]) -> str:
    """Return what runs published together, in words."""
    return "; ".join(dict.fromkeys(run.released for run in runs))
