"""Certificates for people to read."""

from collections.abc import Sequence
from typing import Final

from dp._reports import bound
from dp.accounting import Query, Truncation
from dp.certificate._evidence import evidence_lines
from dp.certificate._run import RELEASED, CertifiedRun
from dp.certificate._statement import Statement
from dp.ledger import Charge
from dp.noise import BandedNoise
from dp.schedule import Schedule


__all__ = (
    "RELATIONS",
    "correlation_words",
    "lines",
    "query_words",
    "release_words",
    "run_facts",
    "unproven",
    "why_not",
)

RELATIONS: Final = {
    "add_or_remove_one": "one unit more or less",
    "replace_one": "one unit replaced by another",
    "zero_out": "one unit's part set to zero",
}
"""What two neighbouring datasets differ by, in words."""

_FEW: Final = 8  # Coefficients that are printed; the JSON has all.


def lines(c: Statement) -> list[str]:
    """Return the lines of a certificate."""
    verdict = (
        f"epsilon = {bound(c.epsilon)} at delta = {c.delta:g} ({c.accountant})"
        if c.is_private
        else f"NOT PRIVATE: {why_not(c)}, so epsilon is infinite"
    )
    allocated = any(run.is_allocated for run in c.runs)
    of_what = "this relation" if c.group_size == 1 else "groups"
    if allocated:
        of_what = "random allocation"
    rdp = f"none for {of_what}" if c.epsilon_rdp is None else bound(c.epsilon_rdp)
    groups = (
        ", ".join(f"{bound(e, 2)} ({k})" for k, e in c.epsilon_of_groups.items())
        or f"none is proven for {unproven(allocated=allocated)}"
    )
    return [
        "Differential privacy certificate",
        "",
        f"  {verdict}",
        "",
        f"  neighbouring datasets   {c.neighboring_relation}",
        f"  unit of privacy         {c.unit_of_privacy}"
        + ("" if c.group_size == 1 else f", any {c.group_size} of them at once"),
        f"  by PLD, by RDP          {bound(c.epsilon_pld)}, {rdp}",
        f"  without amplification   {bound(c.epsilon_unamplified)}",
        f"  of groups of units      {groups}",
        f"  of the steps taken      {bound(c.epsilon_of_steps_taken)}{_unclaimed(c)}",
        f"  added to delta          {_error(c.delta_error)}",
        f"  steps                   {c.steps}",
        f"  key epochs              {c.key_epochs} (1, and 1 for each resume or fork)",
        f"  released                {c.released}",
        "",
        "  in plain words",
        *(f"    - {sentence}" for sentence in c.in_plain_words()),
        "",
        *(line for i, run in enumerate(c.runs) for line in _run(i, run, len(c.runs))),
        *_touches(c.private_data_touches),
        "  holds if",
        *(f"    - {sentence}" for sentence in c.assumptions),
        "",
        "  does not cover",
        *(f"    - {sentence}" for sentence in c.not_covered),
        "",
        "  computed with "
        + ", ".join(f"{name} {number}" for name, number in c.software.items()),
    ]


def _unclaimed(c: Statement) -> str:
    """Return why the epsilon of the steps taken is not the one that is claimed."""
    if not any(run.remaining or run.plan.renyi_order for run in c.runs):
        return ""
    return ", if their number was fixed beforehand, which is not claimed"


def why_not(c: Statement) -> str:
    """Return why nothing is guaranteed."""
    failures = [run.failure or run.noise for run in c.runs if run.has_failed]
    return failures[0] if failures else "a release had no noise"


def _error(delta_error: float) -> str:
    if delta_error == float("inf"):
        return "unknown: no bound is known for this generator or epsilon"
    return f"{delta_error:.1e}, because noise is drawn on a computer"


def _run(index: int, run: CertifiedRun, num_runs: int) -> list[str]:
    title = "  run" if num_runs == 1 else f"  run {index + 1}"
    return [
        title,
        *([] if num_runs == 1 else [f"    released              {run.released}"]),
        *(f"    {name:21} {words}" for name, words in run_facts(run).items()),
        *_compared(run.plan.compared),
        *_correlation(run.plan.correlation),
        *_queries(run.plan.queries),
        *(evidence_lines(run) if run.released == RELEASED else []),
        *_declared(run.declared_public),
        "    releases (sampling, noise multiplier, clipping norm)"
        if run.has_passes
        else "    releases (Poisson sampling probability, noise multiplier, clipping norm)",
        *(f"      {words}" for words in release_words(run)),
        "",
    ]


def run_facts(run: CertifiedRun) -> dict[str, str]:
    """Return what was planned, and where the noise came from, by what it is called."""
    plan = run.plan
    target = "none" if plan.target_epsilon is None else f"{plan.target_epsilon:g}"
    order = (
        ""
        if plan.renyi_order is None
        else f", Renyi filter of order {plan.renyi_order:g}"
    )
    steps = "1 step" if plan.steps == 1 else f"{plan.steps} steps"
    return {
        "planned": f"{steps}, target epsilon {target}{order}",
        "ended": _end(run),
        "plan": f"sha256 {plan_id(run.plan_sha256)}",
        "planned noise": _number(plan.noise_multiplier),
        "planned norm": _number(plan.max_grad_norm),
        "noisy sums divided by": f"{plan.expected_batch_size:g}",
        "parameters": str(run.num_parameters),
        "noise": run.noise,
    }


def release_words(run: CertifiedRun) -> list[str]:
    """Return every kind of release of a run: sampling, noise multiplier and norm."""
    return list(map(_releases, run.charges))


def _releases(charge: Charge) -> str:
    low, high = charge.norm_range.least, charge.norm_range.largest
    norm = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return (
        f"{_sampled(charge)}, sigma = {charge.noise_multiplier:g}, C = {norm}"
        + _truncation(charge.truncation)
        + _counted(charge)
        + _off_plan(charge)
    )


def _counted(charge: Charge) -> str:
    noises = charge.noise_beside_count
    if noises is None:
        return ""
    rows = noises.rows_per_example
    counted = (
        f"the count of those within C (noise {noises.count_stddev:g})"
        if rows is None
        else f"counts of touched rows (noise {noises.count_stddev:g}, {rows} an example)"
    )
    return f", together of gradients (sigma = {noises.gradients:g}) and of {counted}"


def _sampled(charge: Charge) -> str:
    num_passes = charge.to_release().num_participations
    q = charge.sampling_probability
    if charge.bands is not None:
        coin = charge.bands * q
        return f"{num_passes} x a round of {charge.bands} steps, q = {coin:g} in one"
    if charge.steps_per_pass is None:
        return f"{charge.count} x q = {q:g}"
    passes = f"{num_passes} x a pass of {charge.steps_per_pass}"
    if charge.disjoint is None:
        return f"{passes} steps"
    return f"{passes} disjoint batches by {charge.disjoint}"


def _compared(sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return []
    return ["    the plan compared", *(f"      - {sentence}" for sentence in sentences)]


def _correlation(noise: BandedNoise | None) -> list[str]:
    if noise is None:
        return []
    first, *others = correlation_words(noise)
    return [f"    correlation           {first}"] + [
        f"                          {words}" for words in others
    ]


def correlation_words(noise: BandedNoise) -> list[str]:
    """Return how noise is correlated, and why that costs no more.

    Which coefficients they are changes no epsilon: their norm is 1, whatever is given.
    """
    few = [f"{c:g}" for c in noise.coefficients[:_FEW]]
    rest = noise.bands - len(few)
    more = f" and {rest} more" if rest > 0 else ""
    return [
        f"{noise.bands} bands: {', '.join(few)}{more}",
        "noise is added to sums of as many steps, and what is",
        "released is computed from noisy sums alone",
    ]


def unproven(*, allocated: bool) -> str:
    """Return how batches were drawn where no bound of groups is proven."""
    return "random allocation" if allocated else "cyclic Poisson sampling"


def _queries(queries: Sequence[Query]) -> list[str]:
    if not queries:
        return []
    return [
        "    queries, counted whether they were asked or not",
        *(f"      {query_words(query)}" for query in queries),
    ]


def query_words(query: Query) -> str:
    """Return what a query asks for, and its noise."""
    plural = "s" if query.num_values > 1 else ""
    return (
        f"{query.name}: {query.num_values} number{plural},"
        f" sigma = {query.noise_multiplier:g}"
    )


def _declared(public: Sequence[str]) -> list[str]:
    if not public:
        return []
    return [
        "    declared public, as constants of the program",
        *(f"      {tensor}" for tensor in public),
    ]


def _end(run: CertifiedRun) -> str:
    """Return after how many steps a run ended, and what that means for the claim."""
    taken = f"after {run.steps} of {run.plan.steps} steps"
    if run.public_end is not None:
        return f"{taken}, which is public: {run.public_end}"
    if not run.remaining:
        return taken
    return (
        f"{taken}; {run.claimed_steps - run.steps} more are counted, since releases may"
        " have decided the end"
    )


def _off_plan(charge: Charge) -> str:
    """Return what is to be said of numbers that are not the plan's."""
    if charge.public is not None:
        return f" (declared public: {charge.public})"
    planned = [
        f"{name} = {value:g}"
        for name, value in (
            ("q", charge.planned_sampling_probability),
            ("sigma", charge.planned_noise_multiplier),
        )
        if value is not None
    ]
    return f" (counted as the planned {' and '.join(planned)})" if planned else ""


def _truncation(truncation: Truncation | None) -> str:
    if truncation is None:
        return ""
    return (
        f", at most {truncation.max_batch_size} of {truncation.dataset_size} examples"
    )


def plan_id(plan_sha256: str) -> str:
    """Return enough of a hash to tell plans apart by eye."""
    return plan_sha256[:16]


def _number(number: float | Schedule) -> str:
    if isinstance(number, Schedule):
        return f"a schedule of {len(number.phases)} phases, from {number(0):g}"
    return f"{number:g}"


def _touches(touches: tuple[str, ...] | None) -> list[str]:
    if touches is None:
        return [
            "  private data was also looked at",
            "    - not stated: whether hyper-parameters, early stopping or the choice of a",
            "      model looked at it",
            "",
        ]
    return [
        "  private data was also looked at",
        *(f"    - {sentence}" for sentence in touches or ("by nothing",)),
        "",
    ]
