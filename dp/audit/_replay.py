"""Run on neighbouring datasets with the same randomness, and compare.

The first run is recorded: its draws, and what it released. The second run, on a
dataset that differs in one record, is given the same coins and, release by release,
the first one's noisy sums in place of its own. So both walk the same path, as the
definition of adaptive composition has it, and everything public must be equal: what
is not was computed from data by another way than the sums. The sums themselves may
differ by the declared sensitivity.

A control, on the first dataset again, tells what differs from run to run anyway. In a
last run the record is an outlier: what ordinary records leave shut, such as a clamp over
the batch, an outlier may open.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, final

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, Subset

from dp._progress import progress_bars
from dp._reports import Finding
from dp.audit._recording import Tape, record
from dp.audit._report import AuditReport
from dp.audit._subject import Train
from dp.exceptions import PrivacyError


__all__ = ("replay",)

_SLACK: Final = 1e-4  # Relative: how sums themselves are rounded is no release.
_FAR_OUT: Final = 1e3  # By what an outlier is larger than the record it is made from.


def replay(
    train: Train,
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    neighbour: Dataset[Any] | None = None,
    progress: bool = False,
) -> AuditReport:
    """Test that one record changes sums by what is declared, and nothing else at all.

    The last record is tested a second time as an outlier: its floating-point numbers a
    thousand times as large.

    Compared after every release: the parameters and buffers of the model, the
    gradients, the optimizer's groups and state, the ledger, and what was printed;
    and in the end the number of releases and whether training raised.

    While it runs, *train* draws its batches and noise under keys that anyone can
    compute, in its own context only: other threads of the process, and tasks of its
    event loop, keep keys of the operating system. What the runs release is for the
    auditor alone: it has no privacy. Threads that *train* starts are not replayed.

    Args:
        train: What is audited, called as ``train(model, dataset)`` with copies.
        model: The model to train.
        dataset: The data, map-style.
        neighbour: The same data but for one record, at the same positions. If None,
            *dataset* without its last record, or, where the plan's relation keeps the
            number of records, with its first record in place of its last.
        progress: Whether to show a progress bar.

    Raises:
        PrivacyError: If the training function makes no ``DPOptimizer``.

    References:
        Cebere et al., "Privacy in Theory, Bugs in Practice: Grey-Box Auditing of
        Differential Privacy Libraries", 2026, https://arxiv.org/abs/2602.17454.
    """
    with progress_bars(shown=progress) as bars:
        first = record(train, model, dataset, bars.begin("one dataset"))
        again = record(train, model, dataset, bars.begin("again"), follows=first)
        given = neighbour is not None
        other = neighbour if neighbour is not None else _neighbour(dataset, first)
        second = record(train, model, other, bars.begin("its neighbour"), follows=first)
        far_out = _WithOutlier(dataset)
        third = (
            record(train, model, far_out, bars.begin("an outlier"), follows=first)
            if far_out.has_outlier
            else None
        )
    if first.error is not None and second.error == first.error:
        raise PrivacyError(f"the training function raises on any data: {first.error}")
    control = _Control(first, again)
    two_changes = not given and _keeps_size(first)
    findings = control.compare(first, second, two_changes=two_changes)
    if third is None:
        findings.append(_NO_OUTLIER)
    else:
        # The neighbour lacks the very record, unless the caller gave another one.
        without = first if given else second
        findings += [
            replace(finding, claim=f"outlier: {finding.claim}")
            for finding in control.compare(
                without, third, two_changes=given or two_changes
            )
        ]
    return AuditReport(name="replay", findings=tuple(findings))


_NO_OUTLIER: Final = Finding(
    claim="outlier",
    holds=True,
    detail="not tested: the last record has no floating-point numbers to make one of;"
    " pass a neighbour with a record that is far from the others",
)


@final
class _WithOutlier(Dataset[Any]):
    """A dataset whose last record is far from what it was."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._last = len(dataset) - 1
        self.has_outlier = False
        self._outlier = tree_map(self._far_out, dataset[self._last])

    def __len__(self) -> int:
        return self._last + 1

    def __getitem__(self, index: int) -> Any:
        return self._outlier if index == self._last else self._dataset[index]

    def _far_out(self, value: Any) -> Any:
        is_floating = (
            value.is_floating_point()
            if isinstance(value, Tensor)
            else isinstance(value, float)
            or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
        )
        self.has_outlier |= is_floating
        return value * _FAR_OUT if is_floating else value


@final
class _Control:
    """What differs between two runs on the same data, and is not compared."""

    def __init__(self, first: Tape, again: Tape) -> None:
        self._anyway = _changed(first, again)
        self._prints_alike = first.output == again.output

    def compare(self, first: Tape, second: Tape, *, two_changes: bool) -> list[Finding]:
        """Return how runs on neighbouring data compare."""
        return [
            _about_sums(first, second, two_changes=two_changes),
            _about_number(first, second),
            self._about_state(first, second),
            self._about_output(first, second),
        ]

    def _about_state(self, first: Tape, second: Tape) -> Finding:
        anyway = self._anyway
        names = [name for name in _changed(first, second) if name not in anyway]
        detail = (
            f"{len(first.states[0]) if first.states else 0} things after each release"
        )
        if names:
            detail = f"one record changes {', '.join(names[:8])}"
        if anyway:
            detail += f"; not compared, as they differ anyway: {', '.join(anyway[:8])}"
        return Finding(claim="public state is equal", holds=not names, detail=detail)

    def _about_output(self, first: Tape, second: Tape) -> Finding:
        holds = first.output == second.output
        detail = f"{len(first.output)} characters"
        if not self._prints_alike:
            holds, detail = (
                True,
                "not compared: it differs from run to run, as times do",
            )
        elif not holds:
            detail = "one record changes what is printed"
        return Finding(claim="printed output is equal", holds=holds, detail=detail)


def _keeps_size(tape: Tape) -> bool:
    return tape.plan.neighboring_relation != "add_or_remove_one"


def _neighbour(dataset: Any, tape: Tape) -> Dataset[Any]:
    if _keeps_size(tape):
        return _FirstForLast(dataset)
    return Subset(dataset, list(range(len(dataset) - 1)))


@final
class _FirstForLast(Dataset[Any]):
    """A dataset whose last record has the first one's values.

    It is no ``Subset`` with a repeated index: loaders refuse one record in two rows.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> Any:
        return self._dataset[0 if row == len(self) - 1 else row]


def _about_sums(first: Tape, second: Tape, *, two_changes: bool) -> Finding:
    """Return whether neighbouring sums are as close as was declared."""
    plan = first.plan
    twice = two_changes or plan.neighboring_relation == "replace_one"
    # What followed the last step, and was charged for no update, is compared by number.
    charged = first.sensitivities
    sums = first.sums_of_steps(), second.sums_of_steps()
    pairs = list(zip(*sums, charged, strict=False))
    distances = _over_bands([_distance(a, b) for a, b, _ in pairs], plan.bands or 1)
    allowed = [sensitivity * (2 if twice else 1) for *_, sensitivity in pairs]
    worst = max(range(len(pairs)), key=lambda t: distances[t] / allowed[t], default=0)
    changed = sum(distance > 0 for distance in distances)
    return Finding(
        claim="sums differ by the sensitivity at most",
        holds=all(
            d <= limit * (1 + _SLACK)
            for d, limit in zip(distances, allowed, strict=True)
        ),
        detail=f"by {distances[worst]:.6g} of {allowed[worst]:g} allowed; {changed} of"
        f" {len(pairs)} sums differ"
        if pairs
        else "there are none to compare",
    )


def _over_bands(distances: Sequence[float], bands: int) -> list[float]:
    """Return the distance of as many sums in a row as there are bands, at each step.

    One record adds multiples of one vector to as many of them, before it may be in
    another step; so it changes all of these together by the sensitivity at most.
    """
    return [
        math.hypot(*distances[max(0, t - bands + 1) : t + 1])
        for t in range(len(distances))
    ]


def _distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    if [t.shape for t in left] != [t.shape for t in right]:
        return float("inf")
    squares = [
        float((a.double() - b.double()).square().sum())
        for a, b in zip(left, right, strict=True)
    ]
    total = sum(squares)
    return total**0.5 if total == total else float("inf")  # noqa: PLR0124 -- NaN


def _about_number(first: Tape, second: Tape) -> Finding:
    ends = [
        f"{len(tape.states)} releases" + (f", then {tape.error}" if tape.error else "")
        for tape in (first, second)
    ]
    return Finding(
        claim="runs are as long, and end alike",
        holds=ends[0] == ends[1],
        detail=" and ".join(ends) if ends[0] != ends[1] else ends[0],
    )


def _changed(first: Tape, second: Tape) -> list[str]:
    """Return the names of what differs after some release, in order of appearance."""
    names: dict[str, None] = {}
    for a, b in zip(first.states, second.states, strict=False):
        for name in (*a, *(n for n in b if n not in a)):
            if a.get(name) != b.get(name):
                names[name] = None
    return list(names)
