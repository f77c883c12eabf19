"""The statement of what the best of several runs cost, and what it rests on."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, final

from dp._reports import bound
from dp.accounting._selection import (
    NegativeBinomialRuns,
    NumRuns,
    PoissonRuns,
    check_selectable,
    selection_epsilon,
)
from dp.certificate import _json
from dp.exceptions import LedgerError
from dp.noise import GaussianNoise
from dp.plan import PrivacyPlan


__all__ = (
    "MOST_NUMBERS",
    "TUNING_FORMAT",
    "TuningCertificate",
    "check_tunable",
    "conditions",
    "delta_error",
    "epsilon_of",
)

TUNING_FORMAT: Final = "forwarding-dp-tuning/1"
_LAWS: Final = {kind.__name__: kind for kind in (PoissonRuns, NegativeBinomialRuns)}
MOST_NUMBERS: Final = 10**13  # That one run noises; a bound that says nothing of it.
_CONDITIONS: Final = (
    (
        "The number of runs was drawn by the operating system, independently of the data, and"
        " was and stays secret: also how long all runs took."
    ),
    (
        "Nothing of any run was looked at but the candidate, the score and the result of the"
        " best one."
    ),
    (
        "Candidates and their plans were fixed before the first run, without looking at private"
        " data; each run took one at random, all alike."
    ),
    "Each run began anew, from nothing that another one had left.",
    "An interrupted run was taken again; nothing of it was looked at.",
    (
        "Whatever each run's own certificate assumes: sampling as planned, losses of one"
        " example each, noise that cannot be predicted."
    ),
)


def conditions(public_scores: str | None) -> tuple[str, ...]:
    """Return what must hold, with where scores came from."""
    of_scores = (
        "Scores are answers of planned queries, or computed from them and public data: part"
        " of what each run released."
        if public_scores is None
        else f"Scores were computed without private data: {public_scores}."
    )
    return (*_CONDITIONS, of_scores)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TuningCertificate:
    """The statement of what choosing the best of several private runs cost.

    Attributes:
        epsilon: The privacy loss of the whole procedure: of the best run's candidate,
            score and result together, however many runs there were.
        delta: The delta it is for.
        delta_error: What to add to delta because noise is drawn on a computer, in all
            runs; infinite if no bound is known.
        epsilon_of_one_run: The privacy loss of one run, with the candidate of which it
            is largest: what the best one would have cost had it been the only one.
        neighboring_relation: What two neighbouring datasets are.
        unit_of_privacy: Whose data one example holds.
        runs: The law of the number of runs.
        plans: The plans of the candidates, each once.
        public_scores: From what public data scores were computed; None if they are
            answers of planned queries.
        conditions: What must hold for the statement, one sentence each.
    """

    epsilon: float
    delta: float
    delta_error: float
    epsilon_of_one_run: float
    neighboring_relation: str
    unit_of_privacy: str
    runs: NumRuns
    plans: tuple[PrivacyPlan, ...]
    public_scores: str | None
    conditions: tuple[str, ...]

    @classmethod
    def of(
        cls,
        plans: Sequence[PrivacyPlan],
        runs: NumRuns,
        *,
        public_scores: str | None,
    ) -> "TuningCertificate":
        """Return the certificate of a procedure; nothing in it depends on its outcome.

        Raises:
            ValueError: If the plans differ in delta, relation or unit, or if no bound is
                known for one of them.
        """
        kinds = tuple(dict.fromkeys(plans))
        for name in ("target_delta", "neighboring_relation", "unit_of_privacy"):
            values = {getattr(plan, name) for plan in kinds}
            if len(values) > 1:
                raise ValueError(
                    f"the plans of all candidates must share their {name}, got"
                    f" {sorted(map(repr, values))}"
                )
        for one in kinds:
            check_tunable(one)
        plan = kinds[0]
        spent = epsilon_of(kinds, runs)
        return cls(
            epsilon=spent,
            delta=plan.target_delta,
            delta_error=delta_error(runs, spent),
            epsilon_of_one_run=max(plan.guarantee().epsilon for plan in kinds),
            neighboring_relation=plan.neighboring_relation,
            unit_of_privacy=plan.unit_of_privacy,
            runs=runs,
            plans=kinds,
            public_scores=public_scores,
            conditions=conditions(public_scores),
        )

    def to_text(self) -> str:
        """Return the certificate for people to read."""
        return "\n".join(
            [
                "Differential privacy certificate of a choice among runs",
                "",
                (
                    f"  epsilon = {bound(self.epsilon)} at delta = {self.delta:g} (Renyi, the"
                    " best of a random number of runs)"
                ),
                "",
                f"  neighbouring datasets   {self.neighboring_relation}",
                f"  unit of privacy         {self.unit_of_privacy}",
                f"  of one run alone        {bound(self.epsilon_of_one_run)}",
                f"  number of runs          {self.runs.described()}; the number is secret",
                f"  plans of candidates     {', '.join(map(_shown, self.plans))}",
                (
                    f"  added to delta          {self.delta_error:.1e}, because noise is drawn"
                    " on a computer"
                ),
                (
                    "  released                the candidate, the score and the result of the"
                    " best run"
                ),
                "",
                "  holds if",
                *(f"    - {sentence}" for sentence in self.conditions),
                "",
            ]
        )

    def to_json(self) -> str:
        """Return the certificate as strict JSON; an infinite number is ``"inf"``."""
        body: dict[str, Any] = {
            "format": TUNING_FORMAT,
            **{
                name: _plain(getattr(self, name))
                for name in self.__dataclass_fields__
                if name not in {"runs", "plans"}
            },
            "runs": {"law": type(self.runs).__name__, **asdict(self.runs)},  # type: ignore[call-overload]  # Every law is a dataclass.
            "plans": [plan.to_dict() for plan in self.plans],
        }
        body["checksum"] = _json.sha256(body)
        return json.dumps(body, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TuningCertificate":
        """Return the certificate that :meth:`to_json` wrote; see :func:`dp.verify`.

        Raises:
            LedgerError: If the text is no such certificate, or was changed by accident.
        """
        try:
            body = _json.parse(text)
            checksum = body.pop("checksum")
            if body["format"] != TUNING_FORMAT or _json.sha256(body) != checksum:
                raise ValueError("another format, or a checksum that does not match")  # noqa: TRY301 -- told below
            del body["format"]
            return cls(**_restored(body))
        except LedgerError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"this is not a certificate of dp.tune: {error}"
            ) from error


def check_tunable(plan: PrivacyPlan) -> None:
    """Raise unless the best of several runs of a plan has a bound.

    Raises:
        ValueError: If the divergences of one run are not known, or not at all orders.
    """
    releases = plan.releases(plan.steps)
    check_selectable(releases, plan.neighboring_relation, plan.group_size)
    if plan.renyi_order is not None:
        raise ValueError(
            f"renyi_order must be None in a plan that is tuned, got {plan.renyi_order!r}:"
            " choosing needs the divergences of all orders"
        )


def epsilon_of(plans: Sequence[PrivacyPlan], runs: NumRuns) -> float:
    """Return the epsilon of the best of a number of runs of any of the plans."""
    return selection_epsilon(
        [(*plan.releases(plan.steps), *plan.query_releases) for plan in plans],
        runs,
        delta=plans[0].target_delta,
        relation=plans[0].neighboring_relation,
    )


def delta_error(runs: NumRuns, spent: float) -> float:
    """Return what noise on a computer adds to delta in all runs, on average.

    The distance from ideal noise of K runs is at most K times that of one, so that of the
    procedure is at most the mean of K times that. Of K itself 53 bits are drawn.
    """
    if math.isinf(spent):
        return math.inf
    num_numbers = math.ceil(MOST_NUMBERS * runs.mean)
    of_noise = GaussianNoise().delta_error(num_numbers, epsilon=spent)
    return of_noise + (1 + math.exp(min(spent, 700.0))) * 2.0**-50


def _shown(plan: PrivacyPlan) -> str:
    """Return a plan in a few words, and enough of its hash to tell it by."""
    return f"{plan.steps} steps (sha256 {_json.sha256(plan.to_dict())[:16]})"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _restored(body: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(body)
    law = dict(fields["runs"])
    fields["runs"] = _LAWS[law.pop("law")](**law)
    fields["plans"] = tuple(map(PrivacyPlan.from_dict, fields["plans"]))
    fields["conditions"] = tuple(fields["conditions"])
    for name in ("epsilon", "delta", "delta_error", "epsilon_of_one_run"):
        fields[name] = float(fields[name])
    return fields
