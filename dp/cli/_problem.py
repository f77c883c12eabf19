"""What a model is trained for: its losses, and its score on held-out rows.

Shapes: ``B`` rows in a batch, ``N`` held-out rows.
"""

import math
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.tables import ScaledTarget


__all__ = ("NO_CLASS", "Classification", "Problem", "Regression", "Verdict")

NO_CLASS: Final = -1
_IMBALANCED: Final = 0.8
_STANDARD_ERRORS: Final = 2.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a model compares with one that knows nothing, on held-out rows.

    Attributes:
        score: The model's score.
        baseline: The score of always naming the commonest class, or the mean.
        is_better: Whether it is better by more than two standard errors.
        sentence: The comparison, in words.
    """

    score: float
    baseline: float
    is_better: bool
    sentence: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """One of several classes for every row; rows without one have no part in it.

    Attributes:
        classes: Their names.
    """

    classes: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """One number a class."""
        return len(self.classes)

    @property
    def score_name(self) -> str:
        """What :meth:`score` is."""
        return "accuracy"

    def losses(self, outputs: Tensor, y_B: Tensor) -> Tensor:
        """Return every row's cross-entropy; 0 where there is no class."""
        return F.cross_entropy(outputs, y_B, reduction="none", ignore_index=NO_CLASS)

    def score(self, outputs: Tensor, y_N: Tensor) -> float:
        """Return the share of rows that are classified correctly."""
        return float((outputs.argmax(dim=1) == y_N).to(torch.float64).mean())

    def verdict(self, outputs: Tensor, y_N: Tensor) -> Verdict:
        """Compare with the commonest class of the held-out rows."""
        accuracy = self.score(outputs, y_N)
        counts = torch.bincount(y_N, minlength=self.num_outputs).to(torch.float64)
        commonest = float(counts.max() / counts.sum())
        error = math.sqrt(accuracy * (1 - accuracy) / len(y_N))
        sentence = (
            f"accuracy {accuracy:.3f} ± {error:.3f}, always the commonest class"
            f" {commonest:.3f}"
        )
        if commonest > _IMBALANCED:
            right = (outputs.argmax(dim=1) == y_N).to(torch.float64)
            of_class = torch.bincount(y_N, weights=right, minlength=self.num_outputs)
            present = counts > 0
            balanced = float((of_class[present] / counts[present]).mean())
            chance = 1 / int(present.sum())
            sentence += f"; balanced accuracy {balanced:.3f}, by chance {chance:.3f}"
        is_better = accuracy - commonest > _STANDARD_ERRORS * error
        return Verdict(
            score=accuracy, baseline=commonest, is_better=is_better, sentence=sentence
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """A number for every row; rows without one have no part in it.

    Attributes:
        target: How the number is scaled.
    """

    target: ScaledTarget

    @property
    def num_outputs(self) -> int:
        """The scaled number."""
        return 1

    @property
    def score_name(self) -> str:
        """What :meth:`score` is."""
        return "RMSE"

    def losses(self, outputs: Tensor, y_B: Tensor) -> Tensor:
        """Return every row's Huber loss of the scaled number; 0 where there is none."""
        has_number_B = ~y_B.isnan()
        losses_B = F.huber_loss(outputs[:, 0], y_B.nan_to_num(), reduction="none")
        return losses_B * has_number_B

    def numbers(self, outputs: Tensor) -> Tensor:
        """Return predictions in the target's own unit."""
        return outputs[:, 0].to(torch.float64) * self.target.scale + self.target.centre

    def score(self, outputs: Tensor, y_N: Tensor) -> float:
        """Return the root of the mean squared error, in the target's own unit."""
        return float((self.numbers(outputs) - y_N).square().mean().sqrt())

    def verdict(self, outputs: Tensor, y_N: Tensor) -> Verdict:
        """Compare with the mean of the held-out rows."""
        errors_N = self.numbers(outputs) - y_N
        from_mean_N = y_N - y_N.mean()
        gains_N = from_mean_N.square() - errors_N.square()
        error = float(gains_N.std() / math.sqrt(len(y_N)))
        score = self.score(outputs, y_N)
        of_mean = float(from_mean_N.square().mean().sqrt())
        sentence = (
            f"RMSE {score:.4g}, always the mean {of_mean:.4g}; mean absolute error"
            f" {float(errors_N.abs().mean()):.4g}"
        )
        is_better = float(gains_N.mean()) > _STANDARD_ERRORS * error
        return Verdict(
            score=score, baseline=of_mean, is_better=is_better, sentence=sentence
        )


Problem = Classification | Regression
