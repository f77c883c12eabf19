"""The count of gradients within the clipping norm, released beside their sum.

The count is one more element of the sums: multiplied by a weight so that it takes the
noise of the gradients, it passes through the same exchange between ranks, the same noise
stage and the same division by the expected batch size. So the two are one Gaussian
release by construction, and what is charged for one covers the other.

Shapes: ``B`` examples, ``G`` groups of parameters, of which there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from dp._mechanism.batch import PendingBatch
from dp._mechanism.current_values import CurrentValues
from dp.accounting._counted import NoiseBesideCount
from dp.clipping import Clipping, QuantileClipping


__all__ = ("NormCount", "count_dtype")


@final
@dataclass(frozen=True, slots=True)
class NormCount:
    """What a clipping rule needs to count; nothing, unless it follows a quantile.

    Attributes:
        rule: The clipping rule.
    """

    rule: Clipping

    def noises(
        self, noise_multiplier: float, expected_batch_size: float
    ) -> NoiseBesideCount | None:
        """Return how a release shares its noise with a count, or None without one.

        Raises:
            ValueError: If the count alone would cost more than the release.
        """
        if type(self.rule) is not QuantileClipping:  # Faster, of an abstract class.
            return None
        stddev = self.rule.count_stddev_of(expected_batch_size)
        return NoiseBesideCount.of(noise_multiplier, stddev)

    def of(
        self, norms_GB: Float[Tensor, "G B"], max_grad_norm: float
    ) -> Tensor | float:
        """Return how many norms are within the bound, less half of them all.

        An example moves it by exactly 1/2, whether its norm is within, beyond or not
        even finite; a count of those within would have twice the sensitivity.
        """
        if type(self.rule) is not QuantileClipping:
            return 0.0
        within_B = norms_GB[0] <= max_grad_norm
        return within_B.sum(dtype=count_dtype(norms_GB)) - len(within_B) / 2

    @staticmethod
    def as_sums(batch: PendingBatch, noises: NoiseBesideCount | None) -> list[Tensor]:
        """Return the count of a batch as one more element of its sums."""
        if noises is None or noises.rows_per_example is not None:
            return []
        like = next(iter(batch.sums.buffers), torch.empty(0))
        count = torch.as_tensor(
            batch.num_within, dtype=count_dtype(like), device=like.device
        )
        return [count * (noises.weight * batch.max_grad_norm)]

    def adapt(
        self,
        values: CurrentValues,
        released: Sequence[Tensor],
        noises: NoiseBesideCount | None,
    ) -> None:
        """Let the clipping norm of the next step follow from a count.

        Args:
            values: Where the norm is; it is still that of the release.
            released: The weighted count with its noise, over the expected batch size.
            noises: What the weight was made of; None if nothing was counted.
        """
        if noises is None or not isinstance(self.rule, QuantileClipping):
            return
        norm = values.max_grad_norm
        # Examples count 1/2 or -1/2. Of 100, 80 within C make 30: 30/100 + 1/2 = 0.8.
        share = released[0].item() / (noises.weight * norm) + 1 / 2
        adapted = self.rule.adapted(norm, share_within=share)
        values.assign("max_grad_norm", adapted)


def count_dtype(like: Tensor) -> torch.dtype:
    """Return the precision of counts where a tensor is."""
    # Weighted counts of millions of examples are no float32 numbers. MPS has no other.
    return torch.float32 if like.device.type == "mps" else torch.float64
