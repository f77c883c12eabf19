"""The file by which tuning goes on after an interruption. It is secret.

It holds the number of runs, which the guarantee needs to be secret until the end, and the
scores of runs that are not published. So only its owner may read it, and it is removed at
the end.
"""

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import torch

from dp.exceptions import LedgerError
from dp.selection._watched import Left


__all__ = ("ProgressFile",)

_NOTE: Final = (
    "SECRET until tuning ends: it holds the number of runs, and scores of runs that are not"
    " published. Keep it, so that tuning can go on, and show it to nobody."
)


@final
@dataclass(slots=True)
class ProgressFile:
    """What was drawn, and what came of the runs so far.

    Attributes:
        path: The file; the best result so far is beside it.
        about: What is tuned, as a hash: another procedure does not go on from it.
        drawn: The candidate of each run.
        scores: The scores of the runs that are over.
        best: Which of them is the best.
        left: What these runs left in their weights, with which no other one begins.
        taker: Who goes on with the file: whoever read it last.
    """

    path: Path
    about: str
    drawn: list[int]
    scores: list[float]
    best: int | None = None
    left: set[Left] = field(default_factory=set)
    taker: str = field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    def begun(
        cls, path: Path, *, about: str, draw: Callable[[], list[int]]
    ) -> "ProgressFile":
        """Return the progress in *path*, or that of a procedure that begins now.

        Raises:
            LedgerError: If the file is of another procedure, or damaged.
        """
        if not path.exists():
            begun = cls(path=path, about=about, drawn=draw(), scores=[])
            begun._write()  # Before the first run: the number of runs is drawn once.
            return begun
        try:
            state = json.loads(path.read_text("utf-8"))
            begun = cls(
                path=path,
                about=state["about"],
                drawn=[int(i) for i in state["drawn"]],
                scores=[float(score) for score in state["scores"]],
                best=state["best"],
                left={(torch.Size(shape), int(n)) for shape, n in state["left"]},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"{path} holds no progress of dp.tune") from error
        if begun.about != about:
            raise LedgerError(
                f"{path} is of another procedure: with other candidates, plans or numbers"
                " of runs. Go on with those, or name another file: what the runs in this"
                " one released is spent"
            )
        begun._write()  # It is this process's from now on.
        return begun

    def check_taker(self) -> None:
        """Raise if another process goes on with the file.

        Two that did would publish two choices, and each certificate would be of one.

        Raises:
            LedgerError: Then.
        """
        # Example: a job that was taken for dead is queued again. The new one goes on, and
        # the old one ends here, with nothing published.
        try:
            taker = json.loads(self.path.read_text("utf-8"))["taker"]
        except FileNotFoundError:
            taker = None
        if taker != self.taker:
            raise LedgerError(
                f"another process goes on with {self.path}, or has ended what was tuned:"
                " this one publishes nothing, since the two together would release two"
                " choices. Look at nothing of it, and use what the other one returns"
            )

    def add(self, score: float, result: Any, left: set[Left]) -> None:
        """Record that one more run is over; keep its result if it is the best.

        Raises:
            LedgerError: If another process goes on with the file.
        """
        self.check_taker()
        self.left |= left
        self.scores.append(score)
        if self.best is None or score > self.scores[self.best]:
            self.best = len(self.scores) - 1
            with _private(self._beside(self.best)).open("wb") as file:
                torch.save(result, file)
        self._write()  # Last: an interrupted run is taken again.
        for other in self.path.parent.glob(f"{self.path.name}.*.best"):
            if other != self._beside(self.best):
                other.unlink()

    def result(self) -> Any:
        """Return the result of the best run."""
        assert self.best is not None, "no run"  # noqa: S101 -- see Tuned
        # Our own bytes: the file is as trusted as the program beside it.
        return torch.load(self._beside(self.best), weights_only=False)

    def remove(self) -> None:
        """Remove everything, once tuning is over."""
        self.path.unlink()  # First: without a result it would be of no use.
        if self.best is not None:
            self._beside(self.best).unlink()

    def _beside(self, run: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{run}.best")

    def _write(self) -> None:
        state = {
            "note": _NOTE,
            "about": self.about,
            "drawn": self.drawn,
            "scores": self.scores,
            "best": self.best,
            "left": sorted([list(shape), number] for shape, number in self.left),
            "taker": self.taker,
        }
        new = _private(self.path.with_name(f"{self.path.name}.new"))
        new.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        os.replace(new, self.path)  # noqa: PTH105 -- all of it, or nothing


def _private(path: Path) -> Path:
    """Make an empty file that only its owner can read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    return path
