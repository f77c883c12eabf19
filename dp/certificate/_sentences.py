"""The sentences that every certificate has to say, by what its runs were charged."""

from collections.abc import Sequence
from typing import Final

from dp.certificate._run import CertifiedRun
from dp.sampling._units import ONE_EXAMPLE, column_of_units


__all__ = ("NOT_COVERED", "assumed", "released")

NOT_COVERED: Final = (
    "Choosing hyper-parameters or a model by looking at private data.",
    (
        "Ending the run by private data that was not released: a validation loss, the"
        " true size of a batch, memory that ran out."
    ),
    "Losses, metrics, batch sizes or gradients that were printed or logged.",
    "Buffers that a forward pass changes, such as running statistics.",
    "What a look at the losses saw: whether it could tell depends on the data.",
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
_ALLOCATED: Final = (
    "Every example was in exactly one batch of each pass, chosen by a coin of its own and"
    " anew in every pass, and each batch was trained on whole and once."
)
_CYCLIC: Final = (
    "Every example was in one group of an iteration, chosen by a coin of its own; every"
    " batch was drawn from one group, in turn, by independent coin flips at the stated"
    " probability times the number of groups, and trained on whole and once."
)
_DISJOINT: Final = {
    "coin": (
        "Every example was in exactly one batch of each pass, by a coin of its own, and"
        " each batch was trained on whole and once."
    ),
    "position": (
        "Every example was in exactly one batch of each pass, by its place in an order"
        " that no data decided, and each batch was trained on whole and once."
    ),
}
_ADAPTIVE_NOISE: Final = (
    "Noise multipliers were chosen from what was released and public facts alone; the"
    " order of the Renyi filter was fixed before the first release."
)
_OTHER_NORMS: Final = (
    "Clipping norms other than the plan's were chosen from public facts and released values"
    " alone."
)
_OFF_PLAN: Final = (
    "Releases at other numbers than the plan's were planned so, in a plan of their own,"
    " before anything was released."
)
_SEVERAL: Final = (
    "How many runs there are, and their plans, were fixed before the first of them."
)
_UNSAMPLED: Final = "No example was given to one step more than once."
_PUBLIC: Final = (
    "The tensors that are listed as declared public are constants of the program: nothing"
    " in them was computed from private data."
)
_QUERIES: Final = (
    "Planned queries were asked once each, of one value a unit of privacy that was"
    " computed without other units, with ranges and edges that are no data."
)
_ROWS: Final = "Every row of the data is made of one example, which no other row is."
_ALWAYS: Final = (
    "One example's loss depended on that example and the parameters only.",
    "The generator of the noise cannot be predicted.",
)


def assumed(runs: Sequence[CertifiedRun]) -> tuple[str, ...]:
    """Return what has to be assumed of runs with such plans and charges."""
    charges = [charge for run in runs for charge in run.charges]
    charges_of_poisson = [
        c for c in charges if c.steps_per_pass is None and c.bands is None
    ]
    amplified = [c.sampling_probability < 1 for c in charges_of_poisson]
    sentences = []
    if any(run.is_allocated for run in runs):
        sentences.append(_ALLOCATED)
    if any(run.is_cyclic for run in runs):
        sentences.append(_CYCLIC)
    disjoint = {charge.disjoint for charge in charges}
    sentences += [says for name, says in _DISJOINT.items() if name in disjoint]
    if any(amplified):
        sentences.append(_SAMPLED)
    if any(charge.truncation for charge in charges):
        sentences.append(_TRUNCATED)
    if not charges or not all(amplified):
        sentences.append(_UNSAMPLED)
    if any(run.plan.queries for run in runs):
        sentences.append(_QUERIES)
    if any(run.declared_public for run in runs):
        sentences.append(_PUBLIC)
    units = dict.fromkeys(run.plan.unit_of_privacy for run in runs)
    sentences.extend(map(_about_unit, units))
    return (*sentences, *_about_plans(runs), *_ALWAYS)


def _about_plans(runs: Sequence[CertifiedRun]) -> list[str]:
    """Return what has to be assumed of how numbers and ends were decided."""
    sentences = []
    if any(run.plan.renyi_order is not None for run in runs):
        sentences.append(_ADAPTIVE_NOISE)
    if any(run.has_other_norms for run in runs):
        sentences.append(_OTHER_NORMS)
    if any(run.is_off_plan for run in runs):
        sentences.append(_OFF_PLAN)
    reasons = dict.fromkeys(c.public for run in runs for c in run.charges)
    sentences += [
        "Noise multipliers declared public follow, until the end of the plan, from no"
        f" release and no private data: {reason}."
        for reason in reasons
        if reason is not None
    ]
    sentences += [
        "After how many steps a run ended follows from no release and no private data:"
        f" {run.public_end}."
        for run in runs
        if run.public_end is not None
    ]
    return [*sentences, _SEVERAL] if len(runs) > 1 else sentences


def _about_unit(unit: str) -> str:
    """Return what has to be true of a unit that the plan names.

    That rows were grouped by it is known; whom a group stands for is not. Rows that can
    be compared were: a dataset that makes its rows as they are read shows nothing.
    """
    if unit == ONE_EXAMPLE:
        return _ROWS
    column = column_of_units(unit)
    if column is None:
        return f"Each unit that was drawn holds all data of {unit}."
    return (
        f"All rows of one person have the same value of {column}, and nobody else's have"
        " it."
    )


def released(runs: Sequence[CertifiedRun]) -> str:
    """Return what runs published together, in words."""
    return "; ".join(dict.fromkeys(run.released for run in runs))
