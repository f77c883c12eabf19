"""The certificate itself, its JSON, and several certificates as one."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from dp import _checks
from dp.accounting import Release, Risk, Truncation
from dp.accounting._agreement import check_agreement
from dp.certificate import _json, _page, _picture, _text
from dp.certificate._numbers import Numbers, together
from dp.certificate._recomputation import (
    check_metered,
    check_recomputed,
    is_recomputed,
)
from dp.certificate._repeats import without_repeats
from dp.certificate._run import RELEASED, CertifiedRun
from dp.certificate._scores import Scores
from dp.certificate._sentences import NOT_COVERED, assumed, released
from dp.certificate._software import software
from dp.certificate._statement import Statement
from dp.evidence import Evidence, of_segments
from dp.exceptions import LedgerError
from dp.ledger import Charge, Ledger, remaining
from dp.ledger._remarks import weakest
from dp.noise import GaussianNoise
from dp.plan import PrivacyPlan


__all__ = ("Certificate", "compose")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate(Statement):
    """The statement of what was released and what it cost.

    Attributes:
        epsilon: The privacy loss of the run, infinite if a release had no noise. It is
            the whole plan's also where the run ended before, since what was released
            may have decided that, unless the end was declared public.
        delta: The delta it is for.
        delta_error: What to add to delta because noise is drawn on a computer;
            infinite if no bound is known, as for the ``"fast"`` generator.
        neighboring_relation: What two neighbouring datasets are.
        unit_of_privacy: Whose data one example holds.
        group_size: How many units may differ at once in every epsilon but those of
            groups; more than one only if the plan says so.
        accountant: Which accountant's bound ``epsilon`` is.
        epsilon_pld: The bound by privacy loss distributions.
        epsilon_rdp: The bound by Renyi differential privacy, where there is one.
        epsilon_unamplified: What the same releases cost if sampling is not trusted.
        epsilon_of_steps_taken: What the releases that were charged compose to: a
            guarantee only if their number was fixed beforehand.
        epsilon_of_groups: What they cost a group of 2, 5 and 10 units at once; empty if
            batches were drawn by random allocation or cyclic Poisson sampling, for which
            no bound is proven.
        risk: What an attacker can find out about one unit at most, or about the group
            of ``group_size``, in plain units.
        steps: How many releases were charged.
        key_epochs: How many processes charged, each with keys of its own for its
            noise: 1 plus the number of resumes and forks.
        intervals: The widths of the buckets of privacy losses, by the name of the
            epsilon: with them any PLD accountant finds the same numbers.
        runs: What was planned and charged.
        private_data_touches: What else looked at private data, one sentence each;
            empty if nothing did, None if that was not stated.
        assumptions: What must hold for the statement, one sentence each.
        not_covered: What the statement does not cover, one sentence each.
        released: What was published, in words.
        software: The packages that computed it, and the hash of this one's source.
    """

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        *,
        noise: GaussianNoise,
        num_parameters: int,
        evidence: Mapping[str, Evidence] | None = None,
        private_data_touches: Sequence[str] | None = None,
        assumptions: Sequence[str] = (),
        released: str = RELEASED,
        public_end: str | None = None,
    ) -> "Certificate":
        """Return the certificate of everything *ledger* was charged.

        Args:
            ledger: The ledger of the run.
            noise: The source of the noise.
            num_parameters: How many numbers a release noised.
            evidence: What was seen of the losses, by the ledger's segments; of steps
                that it says nothing about, nothing was seen.
            private_data_touches: What else looked at private data, such as a choice
                of hyper-parameters, one sentence each; ``()`` says nothing did.
            assumptions: What else must hold, one sentence each.
            released: What was published, in words.
            public_end: Why it is public after how many steps the run ended, where it
                ended before its plan; see :meth:`dp.DPOptimizer.certificate`.

        Before anything is stated, ``dp_accounting`` composes the releases again by its
        own losses: about a second for each kind of release, once in a process.

        Raises:
            PrivacyError: If its epsilon is another one, or if a release has no charge.
            ValueError: If *public_end* says nothing.
        """
        if public_end is not None and not public_end.strip(" ."):
            raise ValueError(
                "public_end must say why it is public when the run ended, got"
                f" {public_end!r}: the certificate prints it"
            )
        meter = copy(ledger.meter)  # Before its charges are read: it may go on.
        # Others may have charged this ledger, before a resume or beside this optimizer.
        said = ledger.remarks
        rng = weakest(noise.rng, said.rng)
        if rng != noise.rng:
            noise = GaussianNoise(rng=rng, seed=0 if rng == "debug" else None)
        run = CertifiedRun(
            plan=ledger.plan,
            plan_sha256=_json.sha256(ledger.plan.to_dict()),
            segments=dict(ledger.segments()),
            num_parameters=max(
                _checks.count(num_parameters=num_parameters), said.num_parameters
            ),
            rng=rng,
            noise=noise.description,
            evidence={},
            declared_public=said.declared_public,
            failure=ledger.failure,
            released=released,
            remaining=()
            if public_end is not None
            else remaining(ledger.plan, ledger.charges()),
            public_end=None if public_end is None else public_end.strip(" ."),
            num_advisories=ledger.num_advisories,
        )
        check_metered(run, meter)
        run = replace(run, evidence=of_segments(evidence or {}, run.steps_of_segments))
        return _certify(
            (run,),
            delta=ledger.plan.target_delta,
            touches=private_data_touches,
            assumptions=[*said.assumptions, *assumptions],
        )

    def to_json(self) -> str:
        """Return the certificate as strict JSON; an infinite number is ``"inf"``."""
        return _json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> "Certificate":
        """Return the certificate that :meth:`to_json` wrote.

        Nothing is recomputed: see :func:`verify`.

        Raises:
            LedgerError: If the text is not a certificate.
        """
        try:
            body = _json.loads(text, cls)
            body["runs"] = tuple(_run(row) for row in body["runs"])
            body["risk"] = Risk(**{k: float(v) for k, v in body["risk"].items()})
            return cls(**body)
        except LedgerError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"this is not a certificate: {error}") from error

    def to_text(self) -> str:
        """Return the certificate for people to read."""
        return "\n".join(_text.lines(self)) + "\n"

    def draw(self, path: Path | str, *, target_epsilon: float | None = None) -> None:
        """Draw epsilon over the steps, and of groups, as a picture.

        Args:
            path: Where to write it; the ending says in what format, such as ``.png``.
            target_epsilon: What all runs together may cost, to mark in the picture; if
                None, the target of each run is marked.
        """
        _picture.draw(self, Path(path), target_epsilon)

    def to_html(
        self, *, scores: Scores | None = None, target_epsilon: float | None = None
    ) -> str:
        """Return the certificate as a page for a browser, which loads nothing.

        Args:
            scores: How good the model was along the run, to show beside epsilon.
            target_epsilon: As of :meth:`draw`.
        """
        return _page.html(self, scores, target_epsilon)

    def write(
        self,
        folder: Path | str,
        *,
        scores: Scores | None = None,
        target_epsilon: float | None = None,
    ) -> None:
        """Write ``certificate.json``, ``.txt``, ``.png`` and ``index.html``.

        Args:
            folder: Where to write them; it is made if it is not there.
            scores: As of :meth:`to_html`.
            target_epsilon: As of :meth:`draw`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "certificate.json").write_text(self.to_json(), encoding="utf-8")
        (folder / "certificate.txt").write_text(self.to_text(), encoding="utf-8")
        page = self.to_html(scores=scores, target_epsilon=target_epsilon)
        (folder / "index.html").write_text(page, "utf-8")
        self.draw(folder / "certificate.png", target_epsilon=target_epsilon)


def compose(*certificates: Certificate, delta: float | None = None) -> Certificate:
    """Return one certificate of everything that several certificates state.

    For several runs on the same people's data: optimizers that train side by side,
    phases with different plans, earlier attempts. What runs share, because they went
    on from one checkpoint, counts once.

    Args:
        certificates: The certificates, in any order.
        delta: The delta to state epsilon at; the one they share if None.

    Raises:
        TypeError: If an argument is no certificate, as a list of them.
        ValueError: If there is none, or if they differ in their relation or units, or
            in their delta and none is given.
        LedgerError: If two contradict each other about the same charges.
    """
    if not certificates:
        raise ValueError("compose needs a certificate")
    for item in certificates:
        if not isinstance(item, Certificate):
            raise TypeError(
                f"compose takes certificates one by one, got {type(item).__name__}: call"
                " compose(*certificates), or Certificate.from_json(text) for a document"
            )
    _the_only("neighboring_relation", {c.neighboring_relation for c in certificates})
    _the_only("unit_of_privacy", {c.unit_of_privacy for c in certificates})
    _the_only("group_size", {c.group_size for c in certificates})
    orders = {run.plan.renyi_order for c in certificates for run in c.runs} - {None}
    if orders:
        _the_only("renyi_order, where they have one", orders)
    deltas = {c.delta for c in certificates} if delta is None else {delta}
    return _certify(
        without_repeats([run for c in certificates for run in c.runs]),
        delta=_checks.open_unit(delta=_the_only("delta", deltas)),
        touches=_all_touches(certificates),
        assumptions=[line for c in certificates for line in c.assumptions],
    )


def _all_touches(certificates: Sequence[Certificate]) -> list[str] | None:
    """Return what else looked at private data; None if one certificate does not say."""
    touches: list[str] = []
    for certificate in certificates:
        if certificate.private_data_touches is None:
            return None
        touches.extend(certificate.private_data_touches)
    return touches


def _certify(
    runs: tuple[CertifiedRun, ...],
    *,
    delta: float,
    touches: Sequence[str] | None,
    assumptions: Sequence[str],
) -> Certificate:
    plan = runs[0].plan
    relation, group_size = plan.neighboring_relation, plan.group_size
    numbers = Numbers.of(runs, delta=delta, relation=relation, group_size=group_size)
    by_charges = is_recomputed(runs, group_size)
    if by_charges:
        check_recomputed(runs, numbers, delta=delta, relation=relation)
    if all(run.plan.renyi_order is None for run in runs):
        claimed = together(runs, claimed=True)
        check_agreement(claimed, delta, relation, group_size, of_example=not by_charges)
    return Certificate(
        epsilon=numbers.epsilon,
        accountant=numbers.accountant,
        epsilon_pld=numbers.epsilon_pld,
        epsilon_rdp=numbers.epsilon_rdp,
        epsilon_unamplified=numbers.epsilon_unamplified,
        epsilon_of_steps_taken=numbers.epsilon_of_steps_taken,
        epsilon_of_groups=numbers.epsilon_of_groups,
        risk=numbers.risk,
        delta_error=numbers.delta_error,
        steps=numbers.steps,
        key_epochs=numbers.key_epochs,
        intervals=numbers.intervals,
        delta=delta,
        neighboring_relation=plan.neighboring_relation,
        unit_of_privacy=plan.unit_of_privacy,
        group_size=plan.group_size,
        runs=runs,
        private_data_touches=None if touches is None else tuple(dict.fromkeys(touches)),
        assumptions=tuple(dict.fromkeys([*assumed(runs), *assumptions])),
        not_covered=NOT_COVERED,
        released=released(runs),
        software=software(),
    )


def _the_only(what: str, values: set[Any]) -> Any:
    if len(values) > 1:
        listed = ", ".join(sorted(map(repr, values)))
        raise ValueError(
            f"certificates to compose must share their {what}, got {listed}"
        )
    return values.pop()


def _run(row: Mapping[str, Any]) -> CertifiedRun:
    fields = dict(row)
    fields["plan"] = PrivacyPlan.from_dict(fields["plan"])
    fields["segments"] = {
        key: tuple(map(Charge.from_dict, segment))
        for key, segment in fields["segments"].items()
    }
    fields["evidence"] = {
        key: Evidence.from_dict(seen) for key, seen in fields["evidence"].items()
    }
    fields["declared_public"] = tuple(fields["declared_public"])
    fields["remaining"] = tuple(map(_release, fields["remaining"]))
    return CertifiedRun(**fields)


def _release(row: Mapping[str, Any]) -> Release:
    truncation = row["truncation"]
    smaller = None if truncation is None else Truncation(**truncation)
    return Release(**{**row, "truncation": smaller})
