"""Which tensors only followed released weights from one step to the next.

A teacher that follows its student, a target network and an average of weights are
written by the training loop, as a mean of the batch may be. They are told apart by their
numbers: each went some share of the way to a weight of its shape, the same way in every
element, and private data did not.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, final

import torch
from torch import Tensor


__all__ = ("Averages",)

_FEWEST: Final = 4  # Elements: of fewer, anything is on the way to something.
_ULPS: Final = 4.0


@final
class Averages:
    """The weights that tensors may have followed.

    Args:
        weights: What is trained, and was released. Of what is sharded nothing is known
            here, and nothing follows it.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights: dict[torch.Size, list[Tensor]] = {}
        for weight in weights:
            if _is_real(weight) and not hasattr(weight, "placements"):
                self._weights.setdefault(weight.shape, []).append(weight.detach())

    def followed(self, changed: Mapping[Any, tuple[Any, Any]]) -> set[Any]:
        """Return the labels of tensors that followed a weight, or counted one step.

        Args:
            changed: What each label had before and has now.
        """
        pairs = {k: (a, b) for k, (a, b) in changed.items() if _are_alike(a, b)}
        counts = {k for k, (before, now) in pairs.items() if _is_count(before, now)}
        real = {k: pairs[k] for k in pairs.keys() - counts if _is_real(pairs[k][0])}
        shares: dict[Any, float] = {}
        for label, (before, now) in real.items():
            if before.numel() >= _FEWEST:
                shares |= dict.fromkeys([label], self._share(before, now))
        # Example: a teacher's bias of one element went 0.1 of the way, as all others.
        known = {share for share in shares.values() if share}
        few = {k for k in real.keys() - shares.keys() if self._went(*real[k], known)}
        return counts | few | {k for k, share in shares.items() if share}

    def _share(self, before: Tensor, now: Tensor) -> float:
        """Return how much of the way to a weight a tensor went; 0.0 if to none."""
        for weight in self._weights.get(now.shape, ()):
            way = (weight.to(before.device) - before).double()
            went = (now - before).double()
            fit = float((way * went).sum() / (way * way).sum().clamp(min=1e-300))
            # In 16 bits a copy differs from its weight by as much as a step moves it.
            for share in (1.0, fit):
                if self._went(before, now, [share]):
                    return share
        return 0.0

    def _went(self, before: Tensor, now: Tensor, shares: Iterable[float]) -> bool:
        return any(
            0 < share <= 1 and _is_between(before, now, weight, share)
            for weight in self._weights.get(now.shape, ())
            for share in shares
        )


def _is_between(before: Tensor, now: Tensor, weight: Tensor, share: float) -> bool:
    """Whether each element is where *share* of the way leads, up to rounding."""
    start, end = before.double(), weight.to(before.device).double()
    # Of both terms, as each is rounded: a small mean beside weights of 1 is not on the way.
    rounded, way = start.abs().lerp(end.abs(), share), (end - start).abs()
    # The share was found by rounded numbers, and is off by as much over the whole way.
    unsure = rounded.norm() / way.norm().clamp(min=1e-300)
    error = _ULPS * torch.finfo(now.dtype).eps * (rounded + unsure * way)
    return bool(((now.double() - start.lerp(end, share)).abs() <= error).all())


def _are_alike(before: Any, now: Any) -> bool:
    are_tensors = isinstance(before, Tensor) and isinstance(now, Tensor)
    return are_tensors and (before.shape, before.device) == (now.shape, now.device)


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided


def _is_count(before: Tensor, now: Tensor) -> bool:
    # A flag that goes up may say that something was in the batch.
    is_real = now.is_floating_point() or now.is_complex() or now.dtype == torch.bool
    return now.numel() == 1 and not is_real and bool(now == before + 1)
