"""Every audit of one training function, and what is published of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.data import TensorDataset

from dp._reports import Report
from dp.audit._canaries import CanaryReport, canaries
from dp.audit._conformance import conformance
from dp.audit._replay import replay
from dp.audit._report import AuditReport
from dp.audit._subject import Train


__all__ = ("PICTURE", "AuditSuiteReport", "run_all")

PICTURE: Final = "roc.png"
_FORMAT: Final = "forwarding-dp-audit/1"
_NUM_RECORDS, _NUM_FEATURES, _NUM_CLASSES = 100, 6, 3
_LAST_RECORDS: Final = {"ordinary": 1.0, "huge": 1e6, "NaN": float("nan")}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSuiteReport(Report):
    """The reports of all audits.

    Attributes:
        attack: What :func:`dp.audit.canaries` reported.
        reports: What the others reported.
    """

    attack: CanaryReport
    reports: tuple[AuditReport, ...]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return self.attack.ok and all(report.ok for report in self.reports)

    def to_text(self) -> str:
        """Return the reports for people to read."""
        texts = [self.attack.to_text(), *(report.to_text() for report in self.reports)]
        verdict = "Everything holds." if self.ok else "It does NOT hold."
        return "\n\n".join([*texts, verdict]) + "\n"

    def to_json(self) -> str:
        """Return the reports as JSON."""
        named = [("canaries", self.attack.findings)]
        named += [(report.name, report.findings) for report in self.reports]
        body = {
            "format": _FORMAT,
            "ok": self.ok,
            "epsilon_empirical": self.attack.epsilon_empirical,
            "epsilon_proven": self.attack.epsilon_proven,
            "delta": self.attack.delta,
            "confidence": self.attack.confidence,
            "num_canaries": self.attack.num_canaries,
            "audits": {name: [asdict(f) for f in findings] for name, findings in named},
        }
        return json.dumps(body, indent=2) + "\n"

    def write(self, folder: Path | str) -> None:
        """Write ``audit.json``, ``audit.txt`` and ``roc.png`` into *folder*."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "audit.json").write_text(self.to_json(), encoding="utf-8")
        (folder / "audit.txt").write_text(self.to_text(), encoding="utf-8")
        self.attack.draw(folder / PICTURE)


def run_all(
    train: Train, *, num_records: int, progress: bool = False
) -> AuditSuiteReport:
    """Run every audit of *train*: replay with an ordinary, a huge and a NaN record.

    Args:
        train: What is audited.
        num_records: Records of conformance, and canaries.
        progress: Whether to show progress bars.

    Raises:
        PrivacyError: If the training function makes no ``DPOptimizer``.
        ValueError: If its plan has no noise, or *num_records* is below 1000.
    """
    general = conformance(train, num_records=num_records, progress=progress)
    attack = canaries(train, num_canaries=num_records, progress=progress)
    return AuditSuiteReport(
        attack=attack, reports=(general, *_replays(train, progress=progress))
    )


@final
class _Classifier(nn.Module):
    """A small classifier that takes a batch and returns its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(_NUM_FEATURES, 16),
            nn.LayerNorm(16),
            nn.Tanh(),
            nn.Linear(16, _NUM_CLASSES),
        )

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        features, classes = batch
        return F.cross_entropy(self.layers(features), classes, reduction="none")


def _replays(train: Train, *, progress: bool) -> list[AuditReport]:
    reports = []
    model = _Classifier()
    for name, scale in _LAST_RECORDS.items():
        features = torch.randn(_NUM_RECORDS, _NUM_FEATURES)
        features[-1] *= scale
        classes = torch.randint(_NUM_CLASSES, (_NUM_RECORDS,))
        dataset = TensorDataset(features, classes)
        report = replay(train, model, dataset, progress=progress)
        article = "an" if name == "ordinary" else "a"
        reports.append(replace(report, name=f"replay without {article} {name} record"))
    return reports
