"""The rule of an LSTM layer that oneDNN runs as one operation.

That is ``nn.LSTM`` in single precision on a CPU. Elsewhere, and for ``nn.GRU`` and
``nn.RNN``, torch runs every step as operations that have rules of their own.

oneDNN keeps no gates in a form that can be read, so the rule computes them again from
the inputs and the hidden states, and takes the gradients of the outputs back through
time itself (Hochreiter and Schmidhuber, 1997; Gers et al., 2000, for the forget gate).
Every weight is then one matrix product over all steps:

    gates = x @ w_ih.T + h_before @ w_hh.T + biases

Shapes: ``T`` steps, ``N`` sequences, one or more of each of ``B`` examples, ``I``
inputs, ``H`` hidden units, ``G = 4 * H`` gates.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import leaf
from dp.per_sample._parts.part import MaterializedGrads, wide
from dp.per_sample._rules.context import (
    Grads,
    Parts,
    Rule,
    RuleContext,
    reduce_broadcast,
)


__all__ = ("RECURRENT_RULES",)

_W_IH, _W_HH, _B_IH, _B_HH, _HX, _CX = range(1, 7)
_SEQUENCES: Final = -2  # The axis of outputs [T, N, H] and of states [N, H].
_LSTM: Final = 2  # As torch numbers the kinds of layers.


def _lstm(context: RuleContext, grads: Grads) -> Parts:
    # Any output that matters will do: examples lie alike in all of them.
    context = replace(context, layouts={0: next(iter(context.layouts.values()))})
    inputs_TNI, hidden_TNH = (
        _by_step(context, wide(context.saved(name))) for name in ("input", "result0")
    )
    before_TNH = torch.cat([wide(context.saved("hx_"))[None], hidden_TNH[:-1]])
    w_ih, w_hh, *biases = (wide(context.saved(f"weight{i}")) for i in range(4))
    gates_TNG = inputs_TNI @ w_ih.mT
    gates_TNG += before_TNH @ w_hh.mT
    if context.saved("has_biases"):
        gates_TNG += sum(biases)
    back_TNG, d_hx, d_cx = _through_time(
        gates_TNG,
        w_hh,
        wide(context.saved("cx_")),
        [*(None if grad is None else wide(grad) for grad in grads), None, None],
        reverse=context.saved("reverse"),
    )
    parts = Parts()
    rows = context.rows(back_TNG)
    for position, other in ((_W_IH, inputs_TNI), (_W_HH, before_TNH)):
        if position in context.operands:
            parts[position] = context.product(rows, context.rows(other))
    for position in {_B_IH, _B_HH} & context.operands.keys():
        parts[position] = MaterializedGrads(rows.sum(1))
    for position, grad in ((_HX, d_hx), (_CX, d_cx)):
        if position in context.operands:
            parts[position] = reduce_broadcast(context, position, grad)
    return parts


def _by_step(context: RuleContext, tensor: Tensor) -> Tensor:
    """Return the steps in the order in which the layer computes them."""
    return tensor.flip(0) if context.saved("reverse") else tensor


def _through_time(
    gates_TNG: Tensor, w_hh: Tensor, cell_NH: Tensor, grads: Grads, *, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the gates' inputs, and those of the first states.

    Args:
        gates_TNG: The inputs of the gates, step by step.
        w_hh: The weights from hidden units to gates.
        cell_NH: The initial state of the cells.
        grads: The gradients of the outputs, the last hidden state and the last state
            of the cells.
        reverse: Whether the outputs are in the reverse order of the steps.
    """
    # c = f * c_before + i * g and h = o * tanh(c), as in torch.nn.LSTM.
    i, f, g, o = gates_TNG.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cells = [cell_NH]
    for step in range(len(f)):
        cells.append(torch.addcmul(f[step] * cells[-1], i[step], g[step]))
    before, tanh = torch.stack(cells[:-1]), torch.stack(cells[1:]).tanh()
    # The factors of all steps at once; only the products below go step by step.
    of_cell = torch.cat([g * i * (1 - i), before * f * (1 - f), i * (1 - g * g)], -1)
    of_output, to_cell = tanh * o * (1 - o), o * (1 - tanh * tanh)
    outputs, *states = grads
    d_h, d_c = (torch.zeros_like(cell_NH) if s is None else s for s in states[:2])
    back_TNG = torch.empty_like(gates_TNG)
    for step in reversed(range(len(f))):
        if outputs is not None:
            d_h = d_h + outputs[-1 - step if reverse else step]
        d_c = torch.addcmul(d_c, d_h, to_cell[step])
        torch.mul(
            d_c.repeat(1, 3), of_cell[step], out=back_TNG[step, :, : -len(w_hh) // 4]
        )
        torch.mul(d_h, of_output[step], out=back_TNG[step, :, -len(w_hh) // 4 :])
        d_h, d_c = back_TNG[step] @ w_hh, d_c * f[step]
    return back_TNG, d_h, d_c


def _is_along_sequences(context: RuleContext) -> bool:
    if (
        0 in context.operands
        or context.saved("mode") != _LSTM
        or context.saved("batch_sizes")
    ):
        return False
    if context.num_samples == 1:
        return True
    layouts = {*context.layouts.values()}
    return len(layouts) == 1 and layouts.pop().axis == _SEQUENCES


def _example() -> Tensor:
    outputs: Tensor = torch.mkldnn_rnn_layer(
        leaf(1, 1, 1),
        *(leaf(4, 1), leaf(4, 1), leaf(4), leaf(4), leaf(1, 1), leaf(1, 1)),
        reverse=False,
        batch_sizes=[],
        mode=_LSTM,
        hidden_size=1,
        num_layers=1,
        has_biases=True,
        bidirectional=False,
        batch_first=False,
        train=True,
    )[0]
    return outputs


def _table() -> Mapping[str, Rule]:
    try:
        _example()
    except RuntimeError:  # Where oneDNN is missing, torch does not use it either.
        return {}
    return {
        "MkldnnRnnLayerBackward0": Rule(
            parts=_lstm,
            reads=(
                "input",
                "result0",
                "hx_",
                "cx_",
                "weight0",
                "weight1",
                "weight2",
                "weight3",
                "has_biases",
                "reverse",
                "mode",
                "batch_sizes",
            ),
            example=_example,
            applies=_is_along_sequences,
            takes_all=True,
        )
    }


RECURRENT_RULES: Final = _table()
