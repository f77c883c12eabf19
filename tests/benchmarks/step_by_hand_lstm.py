"""A private step of an LSTM, written by hand for that model alone.

Shapes: ``B`` examples, ``T`` steps, ``D`` features, ``H`` hidden units, ``G = 4 * H``
gates, ``O`` outputs.
"""

from collections.abc import Callable, Sequence

import torch
from step_models import Subject
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- torch's own convention


__all__ = ("lstm",)

_LSTM = 2  # As torch numbers the kinds of layers.
_Weigh = Callable[[Tensor, Sequence[Tensor]], None]


def lstm(subject: Subject) -> Callable[[], tuple[Tensor, _Weigh]]:
    """Return what computes norms [B], and what writes weighted sums."""
    words, *layer = subject.model.parameters()
    *of_layer, w_tags, b_tags = [p.detach() for p in layer]
    table = words.detach()
    B, H = len(subject.x), of_layer[1].shape[1]
    zeros_BH = torch.zeros(B, H)

    def gradients() -> tuple[Tensor, _Weigh]:
        x_TBD = F.embedding(subject.x.T, table)
        h_TBH, gates_TBG = _forward(x_TBD, of_layer, zeros_BH)
        h_TBH.requires_grad_()
        logits = F.linear(h_TBH, w_tags, b_tags).transpose(0, 1)
        loss = subject.losses(logits, subject.y).sum()
        d_logits, d_h = torch.autograd.grad(loss, [logits, h_TBH])
        with torch.no_grad():
            h_TBH = h_TBH.detach()
            before_TBH = torch.cat([zeros_BH[None], h_TBH[:-1]])
            back_TBG = _through_time(gates_TBG, of_layer[1], d_h)
            d_x = (back_TBG @ of_layer[0]).transpose(0, 1)
            g = back_TBG.transpose(0, 1)
            inputs = x_TBD.transpose(0, 1), before_TBH.transpose(0, 1)
            b_BG, b_BO = g.sum(1), d_logits.sum(1)
            same = subject.x[:, :, None] == subject.x[:, None, :]
            gram = g @ g.mT
            h = h_TBH.transpose(0, 1)
            norms_B = (
                (inputs[0] @ inputs[0].mT + inputs[1] @ inputs[1].mT) * gram
            ).sum((1, 2))
            norms_B += 2 * b_BG.square().sum(1) + b_BO.square().sum(1)
            norms_B += ((h @ h.mT) * (d_logits @ d_logits.mT)).sum((1, 2))
            norms_B += ((d_x @ d_x.mT) * same).sum((1, 2))

        def weigh(factors_B: Tensor, sums: Sequence[Tensor]) -> None:
            f_B1 = factors_B[:, None]
            rows_RG = (back_TBG * f_B1).flatten(0, 1)
            sums[0].zero_().index_add_(
                0, subject.x.T.flatten(), (d_x.transpose(0, 1) * f_B1).flatten(0, 1)
            )
            torch.mm(rows_RG.T, x_TBD.flatten(0, 1), out=sums[1])
            torch.mm(rows_RG.T, before_TBH.flatten(0, 1), out=sums[2])
            torch.mv(b_BG.T, factors_B, out=sums[3])
            sums[4].copy_(sums[3])
            rows_RO = (d_logits.transpose(0, 1) * f_B1).flatten(0, 1)
            torch.mm(rows_RO.T, h_TBH.flatten(0, 1), out=sums[5])
            torch.mv(b_BO.T, factors_B, out=sums[6])

        return norms_B, weigh

    return gradients


def _forward(
    x_TBD: Tensor, weights: Sequence[Tensor], zeros_BH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return hidden states, and the gates in oneDNN's workspace."""
    w_ih, w_hh, b_ih, b_hh = weights
    T, B, _ = x_TBD.shape
    H = w_hh.shape[1]
    # oneDNN keeps its workspace where a gradient may be asked for.
    outputs = torch.mkldnn_rnn_layer(
        x_TBD.detach().requires_grad_(),
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        zeros_BH,
        zeros_BH,
        reverse=False,
        batch_sizes=[],
        mode=_LSTM,
        hidden_size=H,
        num_layers=1,
        has_biases=True,
        bidirectional=False,
        batch_first=False,
        train=True,
    )
    # Of 96 units, rows of 4 * 96 numbers are whole cache lines, without gaps.
    assert H == 96
    workspace = outputs[0].grad_fn._saved_result3
    gates = workspace.flatten()[: T * B * 4 * H * 4].view(torch.float32)
    return outputs[0].detach(), gates.view(T, B, 4 * H)


def _through_time(gates_TBG: Tensor, w_hh: Tensor, d_h_TBH: Tensor) -> Tensor:
    """Return the gradients of the gates' inputs."""
    i, f, g, o = gates_TBG.chunk(4, -1)
    cells = torch.empty(len(i) + 1, *i.shape[1:])
    cell, *rest = cells.unbind()
    cell.zero_()
    for new, forget, after in zip((i * g).unbind(), f.unbind(), rest, strict=True):
        cell = torch.addcmul(new, forget, cell, out=after)
    tanh = cells[1:].tanh()
    factors = gates_TBG.addcmul(gates_TBG, gates_TBG, value=-1)
    to_i, to_f, to_g, to_o = factors.chunk(4, -1)
    to_i.mul_(g)
    to_f.mul_(cells[:-1])
    torch.addcmul(i, i * g, g, value=-1, out=to_g)
    to_o.mul_(tanh)
    to_cell = o.addcmul(o * tanh, tanh, value=-1)
    back_TBG = torch.empty_like(factors)
    d_c, d_h = torch.zeros_like(tanh[0]), d_h_TBH[-1]
    steps = zip(
        [None, *d_h_TBH[:-1].unbind()],
        *(x.unbind() for x in (factors, to_cell, f, back_TBG)),
        strict=True,
    )
    for taken, by_gate, cell, forget, back in [*steps][::-1]:
        d_c = torch.addcmul(d_c, d_h, cell)
        torch.mul(torch.cat([d_c, d_c, d_c, d_h], -1), by_gate, out=back)
        if taken is not None:
            d_h, d_c = torch.addmm(taken, back, w_hh), d_c * forget
    return back_TBG
