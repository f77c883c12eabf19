"""Norms and weighted sums of every example's gradient.

One backward pass leaves *parts* of gradients, and both the norms and, once the factors
are known, the clipped sum come from them: no second backward pass (book-keeping, Bu et
al., https://arxiv.org/abs/2210.00038). What takes few elements is put together, since
for small parameters the calls cost more than the arithmetic.

Shapes: ``B`` examples, ``G`` groups of parameters, ``P`` elements of a parameter,
``F`` elements of many small parameters together.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from dp import _tuning
from dp.per_sample._full_precision import FullPrecision, device_types_of
from dp.per_sample._parts.factored import (
    FactoredGrads,
    joint_gram_norms,
    share_grams,
)
from dp.per_sample._parts.part import (
    GradPart,
    MaterializedGrads,
    wide,
)
from dp.per_sample._parts.several_uses import merge_uses, squared_norms_of
from dp.per_sample._row_layers import OuterProducts
from dp.per_sample._scaled_norms import Located, scaled_norms


__all__ = ("BatchedGrads", "JointSums", "PerSampleGradients")


@final
@dataclass(frozen=True, slots=True)
class BatchedGrads:
    """Gradients of parameters of one shape, as one part of more examples.

    Attributes:
        indices: The indices of the L parameters.
        part: Their gradients, L * B rows: all examples of the first parameter first.
    """

    indices: Sequence[int]
    part: MaterializedGrads | FactoredGrads


@final
@dataclass(frozen=True, slots=True)
class JointSums:
    """Weighted sums of small parameters, which were found in one computation.

    Attributes:
        indices: The indices of the parameters.
        memory: All the sums, each element once, behind one another.
        sums: The sum of each parameter, in *memory*.
    """

    indices: Sequence[int]
    memory: Tensor
    sums: Sequence[Tensor]


@final
class PerSampleGradients:
    """Every example's gradient, in a form from which norms and weighted sums follow.

    Attributes:
        num_samples: The number of examples.
        rows: The gradients of layers that meet one row of each example.
        loss_scale: By what all gradients of parts are larger.
        is_detached: Whether the losses depend on none of the parameters.
    """

    def __init__(
        self,
        parts: Mapping[int, Sequence[GradPart]],
        parameters: Sequence[Tensor],
        nonfinite_B: Tensor,
        *,
        loss_scale: float = 1.0,
        stacks: Sequence[BatchedGrads] = (),
        rows: OuterProducts | None = None,
        is_detached: bool = False,
    ) -> None:
        self._stacks = stacks
        self._rows = OuterProducts() if rows is None else rows
        self._parts = {index: merge_uses(uses) for index, uses in parts.items()}
        share_grams(chain.from_iterable(self._parts.values()))
        self._parameters = parameters
        self._nonfinite_B = nonfinite_B  # 0, or inf where the loss is not finite.
        self._small = frozenset(filter(self._is_small, self._parts))
        self._device_types = device_types_of((nonfinite_B, *parameters))
        self.loss_scale = loss_scale  # Every gradient is larger by this factor.
        self._flats: tuple[Sequence[int], list[_Flat]] | None = None
        self._norms: tuple[Sequence[int], Tensor] | None = None
        self.num_samples: int = nonfinite_B.shape[0]  # `len` takes ten times as long.
        self.is_detached = is_detached

    def squared_norms(
        self, group_of: Sequence[int], scales: Sequence[Tensor] = ()
    ) -> Float[Tensor, "G B"]:
        """Return the squared norm of every example's gradient, by group.

        It is infinite for an example whose loss is not finite. Like the sums, it is
        computed in full precision, whatever autocast or TF32 would permit.

        Args:
            group_of: The group of each parameter: 0, 1, ... without gaps.
            scales: What the elements of each parameter's gradients are multiplied by
                first; none for gradients as they are.
        """
        if scales:
            located = [self._located(index) for index in range(len(scales))]
            with FullPrecision(self._device_types):
                norms_GB = scaled_norms(located, scales, group_of, self._nonfinite_B)
            return norms_GB / self.loss_scale**2
        if self._norms is not None and self._norms[0] == [*group_of]:
            return self._norms[1].clone()  # A verification has asked for them before.
        with FullPrecision(self._device_types):
            norms_GB = torch.stack(self._scaled_norms(group_of))
        if self.loss_scale != 1:
            norms_GB = norms_GB / self.loss_scale**2
        self._norms = [*group_of], norms_GB
        return norms_GB.clone()

    def add_weighted_sum(
        self,
        factors_GB: Float[Tensor, "G B"],
        group_of: Sequence[int],
        sums: Sequence[Tensor],
        *,
        beta: int = 1,
    ) -> None:
        """Add each example's gradient, times its factor, to *sums* in place.

        Guarantees:
            * An example whose factor is 0 adds exactly nothing, even if its gradient
              is NaN or infinite.

        Args:
            factors_GB: The factors, by group and example.
            group_of: The group of each parameter.
            sums: One tensor for each parameter, in float32 or float64.
            beta: 1, or 0 to overwrite *sums*, which may then hold anything.
        """
        self._weigh(factors_GB, group_of, lambda _: sums, beta=beta, consumes=False)

    def weighted_sums(
        self,
        factors_GB: Float[Tensor, "G B"],
        group_of: Sequence[int],
        allocated: Callable[[Sequence[JointSums]], Sequence[Tensor]],
    ) -> Sequence[Tensor]:
        """Return each example's gradient, times its factor, added up.

        As :meth:`add_weighted_sum` into new memory, without the copy of small sums.
        The gradients are used up: each is freed once its sum is there.

        Args:
            factors_GB: The factors, by group and example.
            group_of: The group of each parameter.
            allocated: Given sums that are finished, returns one tensor for each
                parameter, in float32 or float64: such a sum itself, or memory that may
                hold anything.
        """
        return self._weigh(factors_GB, group_of, allocated, beta=0, consumes=True)

    def parts(self, index: int) -> Sequence[GradPart]:
        """Return the gradients of a parameter's uses; none if it has no gradient."""
        return self._located(index)[0]

    def _weigh(
        self,
        factors_GB: Tensor,
        group_of: Sequence[int],
        allocated: Callable[[Sequence[JointSums]], Sequence[Tensor]],
        *,
        beta: int,
        consumes: bool,
    ) -> Sequence[Tensor]:
        # Zero times infinity is NaN, for everybody's sum: in Opacus 1.6.0 one such
        # example made the whole noised gradient NaN. So what is dropped is filled with
        # zeros, not multiplied; copies are made only where a group has such an example.
        masks = _dropped(factors_GB)
        if self.loss_scale != 1:
            factors_GB = factors_GB / self.loss_scale
        with FullPrecision(self._device_types):
            joint = self._joint_sums(factors_GB, masks, group_of)
            added = {i: s for one in joint for i, s in zip(one.indices, one.sums)}  # noqa: B905 -- fast
            if consumes:
                self._stacks, self._flats = (), None
                self._parts = {i: p for i, p in self._parts.items() if i not in added}
            sums = allocated(joint)
            waiting = [i for i, total in added.items() if sums[i] is not total]
            _add_all([sums[i] for i in waiting], [added[i] for i in waiting], beta)
            factors = factors_GB.unbind()
            self._rows.add_weighted_sums(
                factors, masks, group_of, sums, beta=beta, consumes=consumes
            )
            done = {*added, *self._rows.indices}
            for index in [i for i in range(len(sums)) if i not in done]:
                group, total = group_of[index], sums[index]
                self._add_large(index, factors[group], masks[group], total, beta)
                if consumes:
                    self._parts.pop(index, None)
        return sums

    def _scaled_norms(self, group_of: Sequence[int]) -> list[Tensor]:
        """Return the squared norms by group, of the losses times the loss scale."""
        device = self._nonfinite_B.device
        norms = [self._nonfinite_B.clone() for _ in range(max(group_of, default=0) + 1)]
        self._rows.add_squared_norms(norms, group_of)
        for flat in self._flat_parts(group_of):
            norms[flat.group] += flat.part.squared_norms().to(device)
        for stack in self._stacks:
            norms_LB = stack.part.squared_norms().view(-1, self.num_samples).to(device)
            groups = [group_of[index] for index in stack.indices]
            for group, rows_LB in _by_group(norms_LB, groups):
                norms[group] += rows_LB.sum(0)
        in_grams: dict[Hashable, list[int]] = {}
        for index, parts in self._parts.items():
            kind = _kind_of_grams(parts)
            if kind is not None:
                in_grams.setdefault(kind, []).append(index)
            elif index not in self._small:
                parameter = self._parameters[index]
                added_B = squared_norms_of(parts, self.num_samples, parameter)
                norms[group_of[index]] += added_B.to(device)
        for indices in in_grams.values():
            self._add_gram_norms(indices, norms, group_of)
        return norms

    def _add_gram_norms(
        self, indices: Sequence[int], norms: list[Tensor], group_of: Sequence[int]
    ) -> None:
        """Add the squared norms of parameters whose Gram matrices are of one kind."""
        factored = [cast("FactoredGrads", self._parts[i][0]) for i in indices]
        norms_LB = joint_gram_norms(factored).to(self._nonfinite_B.device)
        groups = [group_of[i] for i in indices]
        for group, of_group_lB in _by_group(norms_LB, groups):
            norms[group] += of_group_lB.sum(0)

    def _located(self, index: int) -> Located:
        """Return the parts of a parameter, and where its examples begin in them."""
        for stack in self._stacks:
            if index in stack.indices:
                row = list(stack.indices).index(index)
                return (stack.part,), row * self.num_samples
        if index in self._rows.indices:
            return (self._rows.part(index),), 0
        return self._parts.get(index, ()), 0

    def _add_large(
        self,
        index: int,
        factors_B: Tensor,
        mask_B: Tensor | None,
        total: Tensor,
        beta: int,
    ) -> None:
        """Add the weighted sum of a parameter that is handled by itself."""
        for part in self._parts.get(index, ()):
            usable = part if mask_B is None else part.mask_examples(mask_B)
            usable.add_weighted_sum(factors_B.to(total.device), total, beta=beta)
            beta = 1  # The next use is added to the first.
        if not beta:
            total.zero_()

    def _joint_sums(
        self,
        factors_GB: Tensor,
        masks: Sequence[Tensor | None],
        group_of: Sequence[int],
    ) -> list[JointSums]:
        """Return the weighted sums of the parameters that are handled with others."""
        joint: list[JointSums] = []
        for flat in self._flat_parts(group_of):
            part = flat.part
            if (mask_B := masks[flat.group]) is not None:
                part = part.mask_examples(mask_B)
            total_F = _flat_sum(part, factors_GB[flat.group])
            shapes = [self._parameters[index].shape for index in flat.indices]
            joint.append(JointSums(flat.indices, total_F, _split(total_F, shapes)))
        for stack in self._stacks:
            groups = [group_of[index] for index in stack.indices]
            layers, factors_LB = stack.part, _by_layer(factors_GB, groups)
            if any(masks[group] is not None for group in groups):
                layers = layers.mask_examples((factors_LB == 0).flatten())
            by_layer = layers.stacked_sums(factors_LB)
            joint.append(JointSums(stack.indices, by_layer, by_layer.unbind()))
        return joint

    def _is_small(self, index: int) -> bool:
        parts = self._parts.get(index, ())
        return (
            len(parts) == 1
            and isinstance(parts[0], MaterializedGrads)
            and not parts[0].is_held_anyway
            and self._parameters[index].numel() <= _tuning.SMALL_PARAMETER
        )

    def _flat_parts(self, group_of: Sequence[int]) -> list["_Flat"]:
        """Return the gradients of small parameters, side by side, by group and dtype."""
        if self._flats is not None and self._flats[0] == [*group_of]:
            return self._flats[1]
        members: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
        for index in sorted(self._small):
            grads = self._materialized(index)
            members.setdefault((group_of[index], grads.dtype, grads.device), []).append(
                index
            )
        flats = []
        for (group, _, _), indices in members.items():
            rows = [
                self._materialized(i).reshape(self.num_samples, -1) for i in indices
            ]
            flats.append(
                _Flat(group, indices, MaterializedGrads(torch.cat(rows, dim=1)))
            )
        self._flats = list(group_of), flats
        return flats

    def _materialized(self, index: int) -> Tensor:
        (part,) = self._parts[index]
        assert isinstance(part, MaterializedGrads)  # noqa: S101 -- see _is_small
        return part.grads_BP


@final
@dataclass(frozen=True, slots=True)
class _Flat:
    """Gradients of several parameters of one group, in one tensor."""

    group: int
    indices: Sequence[int]
    part: MaterializedGrads


def _kind_of_grams(parts: Sequence[GradPart]) -> Hashable | None:
    """Return of which kind the Gram matrices of a parameter are; None if it has none."""
    part = parts[0] if len(parts) == 1 else None
    return part.kind_of_grams if isinstance(part, FactoredGrads) else None


def _by_group(values_LB: Tensor, groups: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield each group with the rows of its layers."""
    for group in dict.fromkeys(groups):
        rows = [row for row, other in enumerate(groups) if other == group]
        # One group is the rule, and needs no copy.
        yield group, values_LB if len(rows) == len(groups) else values_LB[rows]


def _dropped(factors_GB: Tensor) -> list[Tensor | None]:
    """Return who has a factor of zero, [B] of each group; None where nobody has."""
    return [
        None if is_kept else factors_B == 0
        for is_kept, factors_B in zip(
            factors_GB.all(1).tolist(), factors_GB.unbind(), strict=True
        )
    ]


def _by_layer(values_GB: Tensor, groups: Sequence[int]) -> Tensor:
    """Return the values of each layer's group."""
    if len(values_GB) == 1:
        return values_GB.expand(len(groups), -1)
    return values_GB[groups]


def _flat_sum(part: MaterializedGrads, factors_B: Tensor) -> Tensor:
    """Return the weighted sum of gradients that lie side by side."""
    grads_BF = wide(part.grads_BP)
    return factors_B.to(grads_BF.device, grads_BF.dtype) @ grads_BF


def _split(total_F: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return the sums of parameters that lie behind one another."""
    parts = total_F.split([shape.numel() for shape in shapes])
    return [
        part_F if len(shape) == 1 else part_F.view(shape)
        for part_F, shape in zip(parts, shapes, strict=True)
    ]


def _add_all(sums: list[Tensor], added: list[Tensor], beta: int) -> None:
    if not sums:
        return
    if beta:
        torch.ops.aten._foreach_add_.List(sums, added)
    else:
        torch.ops.aten._foreach_copy_(sums, added)
