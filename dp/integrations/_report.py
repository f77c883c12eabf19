"""What a private run leaves in its folder, and in the card of its model."""

import json
from pathlib import Path
from typing import Final

from dp._reports import bound
from dp.certificate import Certificate, verify
from dp.optimizer import DPOptimizer


__all__ = ("FOLDER", "card_section", "with_section", "write_report")

FOLDER: Final = "privacy"
_HEADING: Final = "## Privacy"


def write_report(folder: Path, certificate: Certificate) -> None:
    """Write the certificate, the plan and a verification into *folder*.

    Files: those of :meth:`~dp.Certificate.write`, ``plan.json`` and ``verification.txt``.
    """
    certificate.write(folder)
    plans = [run.plan.to_dict() for run in certificate.runs]
    text = json.dumps(plans[0] if len(plans) == 1 else plans, indent=2)
    (folder / "plan.json").write_text(text + "\n", encoding="utf-8")
    report = verify(certificate).to_text()
    (folder / "verification.txt").write_text(report + "\n", encoding="utf-8")


def card_section(optimizer: DPOptimizer) -> str:
    """Return the section of a model card that says what was guaranteed and spent."""
    plan, failure = optimizer.plan, optimizer.ledger.failure
    if failure is not None:
        return f"{_HEADING}\n\nNOT PRIVATE: {failure}.\n"
    guarantee = optimizer.guarantee()
    rows = {
        "epsilon": bound(guarantee.epsilon),
        "delta": f"{guarantee.delta:g}",
        "protects": plan.unit_of_privacy,
        "neighbouring datasets": plan.neighboring_relation,
        "steps": f"{optimizer.ledger.steps} of {plan.steps} planned",
        "noise multiplier": f"{plan.noise_multiplier:.4g}",
        "clipping norm": f"{plan.max_grad_norm:g}",
        "sampling probability": f"{plan.sampling_probability:.4g}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"{_HEADING}\n\n"
        "The weights were trained with differential privacy (DP-SGD). The guarantee is of"
        " the whole plan, wherever training ended. It does not cover the data used for"
        " evaluation, nor how hyper-parameters were chosen.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"What is assumed is stated in `{FOLDER}/certificate.txt`. Recompute the numbers"
        f" with `python -m dp verify {FOLDER}/certificate.json`.\n"
    )


def with_section(card: str, section: str) -> str:
    """Return *card* with its section on privacy replaced, or added at its end."""
    before, found, after = card.partition(_HEADING)
    if not found:
        return f"{card.rstrip()}\n\n{section}"
    _, next_heading, rest = after.partition("\n## ")
    return f"{before}{section}{next_heading}{rest}"
