"""Certificates as a page for a browser: one file, which loads nothing from elsewhere.

Words and numbers are a certificate's own; the template (``templates/report.html.jinja``)
puts them in order, and escapes them.
"""

import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dp.accounting._risk import question
from dp.certificate._chart import Bar, Chart, Line, Mark
from dp.certificate._evidence import evidence_sentences
from dp.certificate._picture import attack_curve, epsilon_over_steps, targets
from dp.certificate._run import RELEASED, CertifiedRun
from dp.certificate._scores import Scores
from dp.certificate._statement import Statement
from dp.certificate._text import (
    RELATIONS,
    correlation_words,
    query_words,
    release_words,
    run_facts,
    unproven,
    why_not,
)
from dp.schedule import rounded_up


if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ("html",)

_TEMPLATES: Final = Path(__file__).parent / "templates"
_MOST_RELEASES: Final = 20  # That are listed; the JSON has all.
_PRIORS: Final = (0.01, 0.1, 0.5)


def html(
    c: Statement, scores: Scores | None = None, target_epsilon: float | None = None
) -> str:
    """Return the page of a certificate, and of scores along its run."""
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            c=c,
            why_not=None if c.is_private else why_not(c),
            relation=RELATIONS[c.neighboring_relation],
            sentences=c.in_plain_words(),
            question=question(c.neighboring_relation, c.group_size),
            who=c.unit_of_privacy if c.group_size == 1 else f"{c.group_size} units",
            beliefs=[(prior, c.risk.belief(prior)) for prior in _PRIORS],
            agreement=_agreement(c),
            charts=list(_charts(c, scores, target_epsilon)),
            scores=scores,
            unproven=unproven(allocated=any(run.is_allocated for run in c.runs)),
            runs=[_told(run) for run in c.runs],
        )
    )


def _told(run: CertifiedRun) -> dict[str, Any]:
    """Return a run as the template asks for it."""
    releases, plan = release_words(run), run.plan
    return {
        "run": run,
        "facts": run_facts(run),
        "correlation": " ".join(
            correlation_words(plan.correlation) if plan.correlation else []
        ),
        "queries": [query_words(query) for query in plan.queries],
        "releases": releases[:_MOST_RELEASES],
        "num_left_out": max(0, len(releases) - _MOST_RELEASES),
        "seen": evidence_sentences(run) if run.released == RELEASED else [],
    }


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, percent=_percent, upwards=_upwards)
    return environment


def _number(value: float | None, digits: int = 4) -> str:
    """Return a number to read; what is missing or unbounded says so."""
    if value is None:
        return "none"
    if not math.isfinite(value):
        return "no bound"
    return f"{value:,.{digits}g}".replace("e-0", "e-").replace("e+", "e")


def _upwards(value: float, digits: int = 3) -> str:
    """Return some digits of a bound, rounded up."""
    if math.isfinite(value):
        value = rounded_up(value, digits=digits)
    return _number(value, digits)


def _percent(share: float) -> str:
    """Return a share in percent, rounded up to a tenth, as a bound has to be.

    >>> _percent(0.58001), _percent(1.0)
    ('58.1 %', '100 %')
    """
    # Not up where only the product is: 1000 * 0.571 may be slightly above 571.
    return f"{math.ceil(share * 1000 - 1e-9) / 10:g} %"


def _charts(
    c: Statement, scores: Scores | None, target_epsilon: float | None
) -> Iterator[Chart]:
    if scores is not None and len(scores.steps) > 1:
        yield _chart_of_scores(scores)
    if not c.is_private:
        return
    curve = epsilon_over_steps(c)
    if curve:
        yield Chart(
            title="Epsilon over the steps",
            x_label="steps",
            y_label="epsilon, if planned to stop here",
            lines=[Line(points=curve, label="epsilon")],
            targets=[
                Mark(value=y, label=words) for y, words in targets(c, target_epsilon)
            ],
            end=Mark(value=c.steps, label="ended here")
            if any(run.remaining for run in c.runs)
            else None,
        )
    attacks = attack_curve(c)
    if attacks:
        yield Chart(
            title="What an attack can find",
            x_label="false alarms, a share of those that were not in",
            y_label="found at most, a share of those that were",
            lines=[
                Line(points=attacks, label="at most"),
                Line(points=[(0, 0), (1, 1)], label="guessing", style="rival"),
            ],
            highest=1.0,
        )
    costs = {c.group_size: c.epsilon, **c.epsilon_of_groups}
    finite = {size: cost for size, cost in costs.items() if math.isfinite(cost)}
    if len(finite) > 1:
        yield Chart(
            title="Epsilon of several units at once",
            x_label="units that differ",
            y_label="epsilon",
            bars=[Bar(label=str(k), value=cost) for k, cost in sorted(finite.items())],
        )


def _chart_of_scores(scores: Scores) -> Chart:
    private = zip(scores.steps, scores.values, strict=True)
    lines = [Line(points=_finite(private), label="private")]
    if scores.without_privacy:
        points = _finite(scores.without_privacy)
        lines.append(Line(points=points, label="without privacy", style="rival"))
    return Chart(
        title=f"{scores.name[:1].upper()}{scores.name[1:]} over the steps",
        x_label="steps",
        y_label=scores.name,
        lines=lines,
        lowest=None,
        highest=scores.highest,
    )


def _agreement(c: Statement) -> str | None:
    """Return how epsilon was computed a second time, before it was stated."""
    if not c.is_private or not c.steps:
        return None
    if any(run.plan.renyi_order is not None for run in c.runs):
        return None
    if any(run.is_allocated for run in c.runs):
        return "Epsilon is above a lower bound, which was computed in another way."
    return (
        "The releases were composed a second time, by dp_accounting alone, which found the"
        " same epsilon."
    )


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out scores of a model that diverged."""
    return [(x, y) for x, y in points if math.isfinite(y)]
