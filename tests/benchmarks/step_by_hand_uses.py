"""The layers of steps that are written by hand: what each keeps, its norms and sums.

Shapes: ``B`` examples, ``T`` positions, ``I`` inputs, ``O`` outputs, ``D`` features,
``V`` words.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention


__all__ = ("Tape",)

_MATRIX = 2
_Found = tuple[Tensor, Callable[[Tensor, Sequence[Tensor]], None]]


class Tape:
    """Layers in the order in which they were called, and what their gradients need.

    Args:
        index_of: The index of each parameter, by its identity.
        keeps: Whether gradients of weights are held, which takes memory, or found by
            Gram matrices.
    """

    def __init__(self, index_of: Mapping[int, int], *, keeps: bool) -> None:
        self._index_of = index_of
        self._product = partial(_product, keeps=keeps)
        self._tied: set[int | None] = set()
        self._outputs: list[Tensor] = []
        self._uses: list[Callable[[Tensor], _Found]] = []
        self._words: tuple[Tensor, Tensor] | None = None
        self._found: list[_Found] = []

    def layer(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return self.linear(x, layer.weight, layer.bias)

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, *, examples: int = 0
    ) -> Tensor:
        values, kept = weight.detach().view(len(weight), -1), x.detach()
        # Rows in one matrix, as for a weight that requires gradients.
        rows = x.reshape(-1, x.shape[-1])
        y = F.linear(rows, values, None if bias is None else bias.detach())
        y = y.view(*x.shape[:-1], -1)
        at, of_bias = self._index(weight), self._index(bias)
        if examples:
            kept = kept.transpose(0, 1)
            return self._kept(
                y, lambda g: self._product(kept, g.transpose(0, 1), at, of_bias)
            )
        serve = _outer if x.dim() == _MATRIX else self._product
        return self._kept(y, lambda g: serve(kept, g, at, of_bias))

    def patches(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        """Convolve with windows that do not overlap: a linear layer of each."""
        at, of_bias = self._index(layer.weight), self._index(layer.bias)
        y = F.conv2d(x, layer.weight.detach(), layer.bias.detach(), layer.stride)
        rows = F.unfold(x, layer.kernel_size, stride=layer.stride).mT
        return self._kept(
            y, lambda g: self._product(rows, g.flatten(2).mT, at, of_bias)
        )

    def norm(self, x: Tensor, layer: nn.LayerNorm) -> Tensor:
        scale, shift = self._index(layer.weight), self._index(layer.bias)
        y, mean, rstd = torch.native_layer_norm(
            x, x.shape[-1:], layer.weight.detach(), layer.bias.detach(), layer.eps
        )
        rows = x.detach()

        def serve(g: Tensor) -> _Found:
            scale_BD = ((rows - mean).mul_(rstd)).mul_(g).sum(1)
            both = torch.stack([scale_BD, g.sum(1)])

            def weigh(factors_B: Tensor, sums: Sequence[Tensor]) -> None:
                sums[scale].copy_(factors_B @ both[0])
                sums[shift].copy_(factors_B @ both[1])

            return both.square().sum((0, 2)), weigh

        return self._kept(y, serve)

    def table(self, x: Tensor, table: Tensor, *, rows: int | None = None) -> Tensor:
        """Add the same rows of a table to every example: all, or the first ones.

        Args:
            x: [B, T, D].
            table: [T or more, D].
            rows: How many, one or T; None for all.
        """
        used = table.detach() if rows is None else table.detach()[:rows]
        at = self._index(table)

        def serve(g: Tensor) -> _Found:
            grads = g if rows != 1 else g.sum(1, keepdim=True)

            def weigh(factors_B: Tensor, sums: Sequence[Tensor]) -> None:
                total = (factors_B @ grads.flatten(1)).view(grads.shape[1:])
                sums[at].zero_()[: len(total)] = total

            return grads.square().sum((1, 2)), weigh

        return self._kept(x + used, serve)

    def embedding(self, words: Tensor, table: Tensor) -> Tensor:
        at = self._index(table)

        def serve(g: Tensor) -> _Found:
            self._words = words, g
            same = words[:, :, None] == words[:, None, :]
            norms_B = (g @ g.mT).mul_(same).sum((1, 2))

            def weigh(factors_B: Tensor, sums: Sequence[Tensor]) -> None:
                scaled = (g * factors_B[:, None, None]).flatten(0, 1)
                total = sums[at] if at in self._tied else sums[at].zero_()
                total.index_add_(0, words.flatten(), scaled)

            return norms_B, weigh

        return self._kept(F.embedding(words, table.detach()), serve)

    def tied(self, x: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        """Return the logits of a head whose weight is the table of words."""
        at, of_bias, kept = self._index(table), self._index(bias), x.detach()
        self._tied.add(at)

        def serve(g: Tensor) -> _Found:
            norms_B, weigh = self._product(kept, g, at, of_bias)
            words, looked_up = self._words
            columns = g.gather(2, words[:, None, :].expand(*g.shape[:2], -1))
            crossed_B = (kept @ looked_up.mT).mul_(columns).sum((1, 2))
            return norms_B + 2 * crossed_B, weigh

        return self._kept(F.linear(x, table.detach(), bias.detach()), serve)

    def backward(self, loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, self._outputs)
        with torch.no_grad():
            for serve, g in zip(self._uses, grads, strict=True):
                self._found.append(serve(g))
        self._uses.clear()

    def squared_norms(self) -> Tensor:
        return torch.stack([norms_B for norms_B, _ in self._found]).sum(0)

    def weigh(self, factors_B: Tensor, sums: Sequence[Tensor]) -> None:
        while self._found:  # The last first: a tied head sets what words are added to.
            self._found.pop()[1](factors_B, sums)

    def _index(self, parameter: Tensor | None) -> int | None:
        return None if parameter is None else self._index_of[id(parameter)]

    def _kept(self, y: Tensor, serve: Callable[[Tensor], _Found]) -> Tensor:
        if not y.requires_grad:
            y.requires_grad_()
        self._outputs.append(y)
        self._uses.append(serve)
        return y


def _outer(x: Tensor, g: Tensor, at: int, of_bias: int | None) -> _Found:
    """Serve a layer that meets one row of each example."""
    norms_B = g.square().sum(1) * (x.square().sum(1) + (of_bias is not None))

    def weigh(factors_B: Tensor, sums: Sequence[Tensor]) -> None:
        scaled = g * factors_B[:, None]
        torch.mm(scaled.T, x, out=sums[at])
        if of_bias is not None:
            torch.sum(scaled, 0, out=sums[of_bias])

    return norms_B, weigh


def _product(
    x: Tensor, g: Tensor, at: int, of_bias: int | None, *, keeps: bool
) -> _Found:
    """Serve a layer that meets several rows of each example."""
    (_, T, I), O = x.shape, g.shape[2]  # noqa: E741 -- shape suffixes
    bias_BO = None if of_bias is None else g.sum(1)
    kept = None
    if keeps or T * (I + O) > I * O:
        kept = g.mT @ x
        norms_B = torch.linalg.vector_norm(kept.flatten(1), dim=1).square_()
    else:
        norms_B = torch.linalg.vecdot((x @ x.mT).flatten(1), (g @ g.mT).flatten(1))
    if bias_BO is not None:
        norms_B = norms_B + bias_BO.square().sum(1)

    def weigh(factors_B: Tensor, sums: Sequence[Tensor]) -> None:
        total = sums[at].view(O, I)
        if kept is not None:
            torch.mv(kept.flatten(1).T, factors_B, out=total.view(-1))
        elif I < O:
            _add_product(g, x * factors_B[:, None, None], total)
        else:
            _add_product(g * factors_B[:, None, None], x, total)
        if bias_BO is not None:
            torch.mv(bias_BO.T, factors_B, out=sums[of_bias])

    return norms_B, weigh


def _add_product(g: Tensor, x: Tensor, total: Tensor) -> None:
    if g.stride(0) < g.stride(1):  # Rows in the order in which they lie.
        g, x = g.transpose(0, 1), x.transpose(0, 1)
    torch.mm(g.flatten(0, 1).T, x.flatten(0, 1), out=total)
