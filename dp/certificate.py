"""What to publish about a private run, and how anyone can check it.

A :class:`Certificate` holds public numbers only, enough of them to compute its own
epsilon again. :func:`verify` does that from the JSON alone.
"""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

import torch

from dp._typing import NeighboringRelation
from dp.accounting import Guarantee, Release, epsilon, merged
from dp.exceptions import LedgerError
from dp.ledger import Charge, Ledger


__all__ = ("Certificate", "Finding", "Verification", "verify")

_FORMAT: Final = "forwarding-dp-certificate/1"
_TOLERANCE: Final = 1e-6  # Of a recomputed epsilon, relative.
_RELEASED: Final = (
    "the model's parameters after every step, and everything computed from them"
)
_NOT_COVERED: Final = (
    "Choosing hyper-parameters, early stopping, or a model by looking at private data.",
    "Losses, metrics, batch sizes or gradients that were printed or logged.",
    "Buffers that a forward pass changes, such as running statistics.",
    "How long a step took, and attacks on the machine that trained.",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The statement of what a run released and what it cost.

    Attributes:
        epsilon: The privacy loss of all releases together, infinite if one of them
            had no noise.
        delta: The delta it is for.
        neighboring_relation: What two neighbouring datasets are.
        unit_of_privacy: Whose data one example holds.
        accountant: Which accountant's bound ``epsilon`` is.
        epsilon_pld: The bound by privacy loss distributions.
        epsilon_rdp: The bound by Renyi differential privacy, where there is one.
        epsilon_unamplified: What the same releases cost if sampling is not trusted.
        steps: How many releases were charged.
        planned_steps: How many the plan allows.
        target_epsilon: What the plan must not exceed, if it says so.
        charges: The releases: sampling probability, noise multiplier, clipping norm
            and number of each kind.
        expected_batch_size: The constant that noisy sums were divided by.
        noise: Where the noise came from.
        num_segments: How many processes charged: 1 plus the number of resumes.
        assumptions: What must hold for the statement, one sentence each.
        not_covered: What the statement does not cover, one sentence each.
        released: What was published, in words.
        versions: The packages that computed it.
    """

    epsilon: float
    delta: float
    neighboring_relation: NeighboringRelation
    unit_of_privacy: str
    accountant: str
    epsilon_pld: float
    epsilon_rdp: float | None
    epsilon_unamplified: float
    steps: int
    planned_steps: int
    target_epsilon: float | None
    charges: tuple[Charge, ...]
    expected_batch_size: float
    noise: str
    num_segments: int
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]
    released: str
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls, ledger: Ledger, *, noise: str, assumptions: Sequence[str] = ()
    ) -> "Certificate":
        """Return the certificate of everything *ledger* was charged.

        Args:
            ledger: The ledger of the run.
            noise: Where the noise came from, one line.
            assumptions: What else must hold, one sentence each.
        """
        plan, spent = ledger.plan, ledger.spent()
        return cls(
            epsilon=spent.epsilon,
            delta=spent.delta,
            neighboring_relation=spent.neighboring_relation,
            unit_of_privacy=plan.unit_of_privacy,
            accountant=spent.accountant,
            epsilon_pld=spent.epsilon_pld,
            epsilon_rdp=spent.epsilon_rdp,
            epsilon_unamplified=_unamplified(ledger.releases(), spent).epsilon,
            steps=ledger.steps,
            planned_steps=plan.steps,
            target_epsilon=plan.target_epsilon,
            charges=ledger.charges(),
            expected_batch_size=plan.expected_batch_size,
            noise=noise,
            num_segments=ledger.num_segments,
            assumptions=(*_assumed(ledger), *assumptions),
            not_covered=_NOT_COVERED,
            released=_RELEASED,
            versions={
                "forwarding": version("forwarding"),
                "dp-accounting": version("dp-accounting"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )

    @property
    def is_private(self) -> bool:
        """Whether epsilon is finite."""
        return math.isfinite(self.epsilon)

    def to_json(self) -> str:
        """Return the certificate as strict JSON; an infinite number is ``"inf"``."""
        body = {"format": _FORMAT, **asdict(self)}
        return json.dumps(_encoded(body), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Certificate":
        """Return the certificate that :meth:`to_json` wrote.

        Raises:
            LedgerError: If the text is not a certificate.
        """
        try:
            body = json.loads(text)
            if body.pop("format") != _FORMAT:
                raise LedgerError(f"the certificate is not in the format {_FORMAT!r}")
            body["charges"] = tuple(Charge(**row) for row in body["charges"])
            for name in ("assumptions", "not_covered"):
                body[name] = tuple(body[name])
            for name in (
                "epsilon",
                "epsilon_pld",
                "epsilon_rdp",
                "epsilon_unamplified",
            ):
                body[name] = None if body[name] is None else float(body[name])
            return cls(**body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, LedgerError):
                raise
            raise LedgerError(f"this is not a certificate: {error}") from error

    def to_text(self) -> str:
        """Return the certificate for people to read."""
        return "\n".join(_lines(self)) + "\n"

    def write(self, folder: Path | str) -> None:
        """Write ``certificate.json`` and ``certificate.txt`` into *folder*."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "certificate.json").write_text(self.to_json(), encoding="utf-8")
        (folder / "certificate.txt").write_text(self.to_text(), encoding="utf-8")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a verification: what was compared, and whether it held."""

    claim: str
    holds: bool
    detail: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a certificate claims, checked line by line.

    Guarantees:
        * ``ok`` is true only if every finding holds.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every line holds."""
        return all(finding.holds for finding in self.findings)


def verify(certificate: Certificate | Path | str) -> Verification:
    """Compute a certificate's numbers again, from the certificate alone.

    Args:
        certificate: A certificate, or the path of its JSON.

    Raises:
        LedgerError: If the file is not a certificate.
        OSError: If it cannot be read.
    """
    if not isinstance(certificate, Certificate):
        certificate = Certificate.from_json(Path(certificate).read_text("utf-8"))
    c = certificate
    try:
        releases = merged(charge.to_release() for charge in c.charges)
        spent = epsilon(
            releases, delta=c.delta, neighboring_relation=c.neighboring_relation
        )
    except ValueError as error:
        finding = Finding(claim="charges", holds=False, detail=str(error))
        return Verification(findings=(finding,))
    unamplified = _unamplified(releases, spent)
    steps = sum(charge.count for charge in c.charges)
    findings = [
        _same_number("epsilon", c.epsilon, spent.epsilon),
        _same_number("epsilon_pld", c.epsilon_pld, spent.epsilon_pld),
        _same_number("epsilon_unamplified", c.epsilon_unamplified, unamplified.epsilon),
        _same_number("steps", c.steps, steps),
    ]
    if c.epsilon_rdp is not None and spent.epsilon_rdp is not None:
        findings.append(_same_number("epsilon_rdp", c.epsilon_rdp, spent.epsilon_rdp))
    if c.target_epsilon is not None:
        findings.append(
            Finding(
                claim="target_epsilon",
                holds=spent.epsilon <= c.target_epsilon,
                detail=f"spent {spent.epsilon:.6g} of {c.target_epsilon:.6g}",
            )
        )
    return Verification(findings=tuple(findings))


def _same_number(claim: str, stated: float, computed: float) -> Finding:
    holds = stated == computed or math.isclose(stated, computed, rel_tol=_TOLERANCE)
    return Finding(
        claim=claim,
        holds=holds,
        detail=f"states {stated:.6g}, recomputed {computed:.6g}",
    )


def _unamplified(releases: tuple[Release, ...], spent: Guarantee) -> Guarantee:
    return epsilon(
        [
            Release(
                sampling_probability=1.0,
                noise_multiplier=release.noise_multiplier,
                count=release.count,
            )
            for release in releases
        ],
        delta=spent.delta,
        neighboring_relation=spent.neighboring_relation,
    )


def _assumed(ledger: Ledger) -> list[str]:
    if any(charge.sampling_probability < 1 for charge in ledger.charges()):
        sampling = (
            "Every batch was drawn by independent coin flips at the stated probability,"
            " and trained on whole and once."
        )
    else:
        sampling = "No example was given to one step more than once."
    return [
        sampling,
        "One example's loss depended on that example and the parameters only.",
        "The generator of the noise cannot be predicted.",
    ]


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value


def _lines(c: Certificate) -> list[str]:
    verdict = (
        f"epsilon = {c.epsilon:.4f} at delta = {c.delta:g} ({c.accountant})"
        if c.is_private
        else "NOT PRIVATE: a release had no noise, so epsilon is infinite"
    )
    rdp = "none for this relation" if c.epsilon_rdp is None else f"{c.epsilon_rdp:.4f}"
    return [
        "Differential privacy certificate",
        "",
        f"  {verdict}",
        "",
        f"  neighbouring datasets   {c.neighboring_relation}",
        f"  unit of privacy         {c.unit_of_privacy}",
        f"  by PLD, by RDP          {c.epsilon_pld:.4f}, {rdp}",
        f"  without amplification   {c.epsilon_unamplified:.4f}",
        f"  target epsilon          {c.target_epsilon or 'none'}",
        f"  steps                   {c.steps} of {c.planned_steps} planned",
        f"  segments                {c.num_segments} (1, and 1 for each resume)",
        f"  noisy sums divided by   {c.expected_batch_size:g}",
        f"  noise                   {c.noise}",
        f"  released                {c.released}",
        "",
        "  releases (Poisson sampling probability, noise multiplier, clipping norm)",
        *(
            f"    {charge.count} x q = {charge.sampling_probability:g},"
            f" sigma = {charge.noise_multiplier:g}, C = {charge.max_grad_norm:g}"
            for charge in c.charges
        ),
        "",
        "  holds if",
        *(f"    - {sentence}" for sentence in c.assumptions),
        "",
        "  does not cover",
        *(f"    - {sentence}" for sentence in c.not_covered),
        "",
        "  computed with "
        + ", ".join(f"{name} {number}" for name, number in c.versions.items()),
    ]
