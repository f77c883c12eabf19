"""Write the tables of ``reference/mechanisms.md``: what can be planned, and its noise.

Run ``python docs/mechanisms.py`` after a change of what plans accept or of accounting;
it takes two minutes. What a plan accepts is found by making one. The tests hold the first
table equal; the second one is computed anew here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dp
from dp.calibration import calibrate_noise_multiplier
from dp.clipping import Clipping
from dp.exceptions import UnsupportedOperationError
from dp.optimizer._adapts import check_adapts
from dp.plan import PrivacyPlan


PAGE = Path(__file__).parent / "reference" / "mechanisms.md"
_SUPPORT = ("<!-- support -->", "<!-- end of support -->")
_RULES = ("<!-- rules -->", "<!-- end of rules -->")
_NOISE = ("<!-- noise -->", "<!-- end of noise -->")
_CORRELATED = ("<!-- correlated -->", "<!-- end of correlated -->")
DELTA = 1e-5
# Steps a pass, passes, epsilon.
SETTINGS = (
    (4, 40, 3.0),
    (10, 2, 3.0),
    (100, 1, 1.0),
    (100, 1, 8.0),
    (100, 10, 1.0),
    (100, 10, 3.0),
    (100, 10, 8.0),
    (1000, 5, 1.0),
    (1000, 5, 8.0),
)
# Steps, sampling probability, epsilon.
CORRELATED = (
    (512, 1 / 64, 1.0),
    (512, 1 / 64, 8.0),
    (512, 1 / 16, 2.0),
    (512, 1 / 16, 8.0),
    (1000, 0.01, 3.0),
    (2000, 0.005, 8.0),
    (100, 0.1, 3.0),
)


@dataclass(frozen=True)
class Way:
    """A way of drawing batches.

    Attributes:
        scheme: An example of it.
        proven: The theorem, and where it is.
        on_ranks: Whether several ranks may draw so.
    """

    scheme: Any
    proven: str
    on_ranks: bool


WAYS = (
    Way(
        dp.PoissonSampling(sampling_probability=0.1),
        "the subsampled Gaussian's pair of laws, composed ([2207.04380](https://arxiv.org/abs/2207.04380));"
        " groups: [2401.10294](https://arxiv.org/abs/2401.10294), Theorem 1;"
        " Rényi filter: [2008.11193](https://arxiv.org/abs/2008.11193)",
        on_ranks=True,
    ),
    Way(
        dp.RandomAllocation(steps_per_pass=10),
        "the pair of [2412.16802](https://arxiv.org/abs/2412.16802) and [2502.08202](https://arxiv.org/abs/2502.08202),"
        " spread onto a grid ([2207.04380](https://arxiv.org/abs/2207.04380));"
        " passes compose",
        on_ranks=True,
    ),
    Way(
        dp.CyclicPoisson(sampling_probability=0.1, bands=4),
        "a round is one Poisson sample, also with `BandedNoise`"
        " ([2306.08153](https://arxiv.org/abs/2306.08153), Theorem 4; the argument:"
        " [how to use correlated noise](../how-to/use-correlated-noise.md#why-it-costs-no-more))",
        on_ranks=True,
    ),
    Way(
        dp.DisjointBatches(steps_per_pass=10, assigned_by="coin"),
        "parallel composition ([PINQ](https://doi.org/10.1145/1559845.1559850), theorem 4),"
        " for adaptive releases in `dp/accounting/_disjoint.py`",
        on_ranks=True,
    ),
    Way(
        dp.DisjointBatches(steps_per_pass=10, assigned_by="position"),
        "the same; one example more would move others to other batches",
        on_ranks=True,
    ),
    Way(
        dp.TruncatedPoissonSampling(
            sampling_probability=0.1, max_batch_size=200, dataset_size=1000
        ),
        "a mixture with a displaced example ([2508.15089](https://arxiv.org/abs/2508.15089));"
        " groups as chains of changes",
        on_ranks=False,
    ),
    Way(
        dp.Unamplified(),
        "the Gaussian mechanism, composed",
        on_ranks=True,
    ),
)
# What is asked of a plan, by the column that it is about.
QUESTIONS: dict[str, dict[str, Any]] = {
    "add or remove": {"neighboring_relation": "add_or_remove_one"},
    "zero out": {"neighboring_relation": "zero_out"},
    "replace": {"neighboring_relation": "replace_one"},
    "groups": {"neighboring_relation": "zero_out", "group_size": 2},
    "schedule of noise": {
        "neighboring_relation": "zero_out",
        "noise_multiplier": dp.Schedule([(10, 2.0), (10, 1.0)]),
    },
    "noise chosen from releases": {
        "neighboring_relation": "zero_out",
        "renyi_order": 8.0,
    },
}

RULES: tuple[Clipping, ...] = (
    dp.FlatClipping(max_grad_norm=1.0),
    dp.QuantileClipping(max_grad_norm=1.0),
    dp.ScaledClipping(max_grad_norm=1.0),
    dp.SparseClipping(max_grad_norm=1.0, tables=(0,)),
)


def is_accepted(way: Way, changes: dict[str, Any]) -> bool:
    """Whether a plan with these numbers can be made, and has an epsilon."""
    try:
        _plan(way, changes).guarantee()
    except (UnsupportedOperationError, ValueError):
        return False
    return True


def support() -> str:
    """Return what can be planned, as a table."""
    columns = ["batches by", *QUESTIONS, "units of several rows", "several ranks"]
    rows = [
        "| " + " | ".join([*columns, "what is proven"]) + " |",
        "| --- " * (len(columns) + 1) + "|",
    ]
    for way in WAYS:
        answers = [is_accepted(way, changes) for changes in QUESTIONS.values()]
        cells = ["yes" if yes else "refused" for yes in (*answers, True, way.on_ranks)]
        rows.append("| " + " | ".join([_name(way), *cells, way.proven]) + " |")
    return "\n".join(rows)


def rules() -> str:
    """Return which clipping rules go with which batches, as a table."""
    correlated = {"correlation": dp.BandedNoise(coefficients=(1.0, 0.5, 0.25, 0.125))}
    ways = [(_name(way), way, {}) for way in WAYS]
    ways.append(("`CyclicPoisson` with `BandedNoise`", WAYS[2], correlated))
    names = [f"`{type(rule).__name__}`" for rule in RULES]
    rows = [
        "| batches by | " + " | ".join(names) + " |",
        "| --- " * (len(RULES) + 1) + "|",
    ]
    for name, way, changes in ways:
        answers = [is_clipped(way, rule, changes) for rule in RULES]
        cells = ["yes" if yes else "refused" for yes in answers]
        rows.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(rows)


def is_clipped(way: Way, rule: Clipping, changes: dict[str, Any]) -> bool:
    """Whether a plan that draws in this way goes with a rule."""
    plan = _plan(way, {"neighboring_relation": "zero_out", **changes})
    try:
        check_adapts(plan, rule)
    except ValueError:
        return False
    return True


def _plan(way: Way, changes: dict[str, Any]) -> PrivacyPlan:
    numbers: dict[str, Any] = {
        "sampling": way.scheme,
        "noise_multiplier": 2.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 100,
        "steps": 20,
        "target_delta": DELTA,
    }
    return PrivacyPlan(**{**numbers, **changes})


def _name(way: Way) -> str:
    by = getattr(way.scheme, "assigned_by", None)
    return f"`{type(way.scheme).__name__}`" + (f" by {by}" if by else "")


def noise() -> str:
    """Return the noise that each needs for the same epsilon, as a table."""
    rows = [
        "| steps a pass | passes | epsilon | Poisson sampling | random allocation | against it |",
        "| --- " * 6 + "|",
    ]
    for num_steps, passes, target in SETTINGS:
        poisson, allocation = _noise(num_steps, passes, target)
        rows.append(
            f"| {num_steps} | {passes} | {target:g} | {poisson:.4f} | {allocation:.4f} |"
            f" {100 * (allocation / poisson - 1):+.1f} % |"
        )
    return "\n".join(rows)


def _noise(num_steps: int, passes: int, target: float) -> Iterator[float]:
    for steps_per_pass in (None, num_steps):
        yield calibrate_noise_multiplier(
            target_epsilon=target,
            target_delta=DELTA,
            sampling_probability=1 / num_steps,
            steps=num_steps * passes,
            neighboring_relation="add_or_remove_one",
            steps_per_pass=steps_per_pass,
        )


def correlated() -> str:
    """Return what correlated noise leaves of the error of prefix sums, as a table."""
    rows = [
        "| steps | q | epsilon | Poisson | allocation | correlated | bands | against Poisson |",
        "| --- " * 8 + "|",
    ]
    for steps, probability, target in CORRELATED:
        plan = dp.plan_for(
            target_epsilon=target,
            target_delta=DELTA,
            sampling_probability=probability,
            steps=steps,
            expected_batch_size=1.0,
            max_grad_norm=1.0,
            mechanism="best",
        )
        errors = [float(re.search(r"error of (\S+) in", s)[1]) for s in plan.compared]
        bands = re.search(r"(\d+) bands", plan.compared[2])[1]
        poisson, allocation, banded = errors
        rows.append(
            f"| {steps} | {probability:g} | {target:g} | {poisson:.4g} |"
            f" {allocation:.4g} | {banded:.4g} | {bands} |"
            f" {100 * (banded / poisson - 1):+.0f} % |"
        )
    return "\n".join(rows)


def replaced(page: str, marks: tuple[str, str], table: str) -> str:
    """Return the page with a table between its marks."""
    first, last = marks
    before, _, rest = page.partition(f"{first}\n")
    _, _, after = rest.partition(last)
    return f"{before}{first}\n\n{table}\n\n{last}{after}"


def main() -> None:
    """Write all tables."""
    page = PAGE.read_text("utf-8")
    page = replaced(page, _SUPPORT, support())
    page = replaced(page, _RULES, rules())
    page = replaced(page, _NOISE, noise())
    page = replaced(page, _CORRELATED, correlated())
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
