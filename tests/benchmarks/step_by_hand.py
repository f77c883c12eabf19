"""Private steps written by hand, each for one model alone: the limit of eager torch.

There is no plan, ledger, check, guard, margin or second opinion: a forward pass that
keeps what norms need, one backward pass to the outputs of the layers, norms by the best
formula for each layer, and weighted sums in one buffer, which ``torch.randn`` adds noise
to. How far it is from the ordinary step is what nobody can avoid in eager torch.

Shapes: ``B`` examples, ``T`` positions, ``I`` inputs, ``O`` outputs, ``D`` features,
``V`` words, ``L`` layers, ``P`` elements of all parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from step_by_hand_lstm import lstm
from step_by_hand_uses import Tape
from step_models import Subject
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention


__all__ = ("by_hand", "gradients_by_hand")

_BOUND = 1.0
_Weigh = Callable[[Tensor, Sequence[Tensor]], None]


class Gradients(Protocol):
    """Computes squared norms [B], and what writes the weighted sums of [B] factors."""

    def __call__(self) -> tuple[Tensor, _Weigh]: ...


def by_hand(subject: Subject, *, noise: bool) -> Callable[[], None]:
    """Return a private step of one model, written for that model alone."""
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    gradients, size = gradients_by_hand(subject), len(subject.y)
    sizes = [p.numel() for p in parameters]

    def step() -> None:
        optimizer.zero_grad()
        norms_B, weigh = gradients()
        factors_B = (_BOUND / norms_B.sqrt()).clamp_(max=1).div_(size)
        flat_P = torch.empty(sum(sizes))
        sums = [
            part.view(p.shape)
            for part, p in zip(flat_P.split(sizes), parameters, strict=True)
        ]
        weigh(factors_B, sums)
        if noise:
            flat_P.add_(torch.randn(len(flat_P)), alpha=_BOUND / size)
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total
        optimizer.step()

    return step


def gradients_by_hand(subject: Subject) -> Gradients:
    """Return what computes the gradients of a subject's model.

    Raises:
        KeyError: If nobody has written a step of it.
    """
    kind = type(subject.model).__name__
    if kind == "Sequential":
        is_tiny = any(isinstance(m, nn.LayerNorm) for m in subject.model)
        return (_tiny_layers if is_tiny else _perceptron)(subject)
    if kind == "Tagger" and isinstance(subject.model.recurrent, nn.LSTM):
        return lstm(subject)
    # Of long sequences, holding gradients was faster than Gram matrices, and of short
    # ones slower; what it takes in memory, dp does not take.
    return _taped(subject, _FORWARD[kind], keeps=kind == "Decoder")


def _taped(subject: Subject, forward: "_Forward", *, keeps: bool) -> Gradients:
    """Serve the layers of a model one by one."""
    index_of = {id(p): i for i, p in enumerate(subject.model.parameters())}

    def gradients() -> tuple[Tensor, _Weigh]:
        tape = Tape(index_of, keeps=keeps)
        outputs = forward(tape, subject.model, subject.x)
        tape.backward(subject.losses(outputs, subject.y).sum())
        return tape.squared_norms(), tape.weigh

    return gradients


def _perceptron(subject: Subject) -> Gradients:
    """Linear layers, each of which meets one row of each example."""
    layers = [m for m in subject.model if isinstance(m, nn.Linear)]
    values = [(m.weight.detach(), m.bias.detach()) for m in layers]

    def gradients() -> tuple[Tensor, _Weigh]:
        h, inputs, outputs = subject.x, [], []
        for i, (weight, bias) in enumerate(values):
            inputs.append(h)
            y = torch.addmm(bias, h, weight.T)
            outputs.append(y if i else y.requires_grad_())
            h = y.relu() if i < len(values) - 1 else y
        grads = torch.autograd.grad(subject.losses(h, subject.y).sum(), outputs)
        inputs = [x.detach() for x in inputs]
        norms = [torch.linalg.vector_norm(one, dim=1) for one in (*inputs, *grads)]
        of_inputs_LB, of_grads_LB = torch.stack(norms).square_().chunk(2)
        norms_B = of_inputs_LB.add_(1).mul_(of_grads_LB).sum(0)

        def weigh(factors_B: Tensor, sums: Sequence[Tensor]) -> None:
            for i, (x, g) in enumerate(zip(inputs, grads, strict=True)):
                scaled = g * factors_B[:, None]
                torch.mm(scaled.T, x, out=sums[2 * i])
                torch.sum(scaled, 0, out=sums[2 * i + 1])

        return norms_B, weigh

    return gradients


def _tiny_layers(subject: Subject) -> Gradients:
    """Blocks of a linear layer, a layer norm and a tanh, and a last linear layer."""
    *layers, last = subject.model
    linear, norms = layers[::3], layers[1::3]
    values = [
        (a.weight.detach(), a.bias.detach(), n.weight.detach(), n.bias.detach())
        for a, n in zip(linear, norms, strict=True)
    ]
    w_last, b_last = last.weight.detach(), last.bias.detach()
    L, D = len(values), subject.x.shape[1]

    def gradients() -> tuple[Tensor, _Weigh]:
        h, inputs, outputs, normed, saved = subject.x, [], [], [], []
        for weight, bias, scale, shift in values:
            inputs.append(h)
            y = torch.addmm(bias, h, weight.T)
            outputs.append(y if len(inputs) > 1 else y.requires_grad_())
            z, mean, rstd = torch.native_layer_norm(y, (D,), scale, shift, 1e-5)
            normed.append(z)
            saved.append((mean, rstd))
            h = z.tanh()
        logits = torch.addmm(b_last, h, w_last.T)
        found = torch.autograd.grad(
            subject.losses(logits, subject.y).sum(), [*outputs, *normed, logits]
        )
        with torch.no_grad():
            x_LBD, y_LBD = torch.stack(inputs), torch.stack(outputs)
            mean, rstd = (torch.stack(one) for one in zip(*saved, strict=True))
            grad_LBD, shift_LBD = torch.stack(found[:L]), torch.stack(found[L : 2 * L])
            scale_LBD = (y_LBD - mean).mul_(rstd).mul_(shift_LBD)
            last_BI, last_BO = h.detach(), found[-1]
            squares = [
                one.square().sum(-1)
                for one in (x_LBD, grad_LBD, scale_LBD, shift_LBD, last_BI, last_BO)
            ]
            norms_B = squares[0].add_(1).mul_(squares[1]).add_(squares[2])
            norms_B = norms_B.add_(squares[3]).sum(0) + (1 + squares[4]) * squares[5]

        def weigh(factors_B: Tensor, sums: Sequence[Tensor]) -> None:
            of_layers = torch.stack([grad_LBD, scale_LBD, shift_LBD])
            weights = (grad_LBD * factors_B[:, None]).mT @ x_LBD
            rows = factors_B @ of_layers  # [3, L, D]
            together = [weights, *rows]
            found = [one for column in zip(*together, strict=True) for one in column]
            scaled = last_BO * factors_B[:, None]
            found += [scaled.T @ last_BI, scaled.sum(0)]
            order = [
                i for n in range(L) for i in (4 * n, 4 * n + 1, 4 * n + 2, 4 * n + 3)
            ]
            torch._foreach_copy_([sums[i] for i in (*order, 4 * L, 4 * L + 1)], found)

        return norms_B, weigh

    return gradients


_Forward = Callable[[Tape, nn.Module, Tensor], Tensor]


def _encoder_layer(tape: Tape, layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    def attend(h: Tensor) -> Tensor:
        """Repeat the operations of nn.MultiheadAttention, copies included."""
        attn, (B, T, D) = layer.self_attn, h.shape
        packed = tape.linear(
            h.transpose(0, 1), attn.in_proj_weight, attn.in_proj_bias, examples=1
        )
        three = packed.unflatten(-1, (3, D)).unsqueeze(0).transpose(0, -2).squeeze(-2)
        three, H = three.contiguous(), attn.num_heads
        q, k, v = (
            three[i].view(T, B * H, -1).transpose(0, 1).view(B, H, T, -1)
            for i in range(3)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3)
        rows = mixed.contiguous().view(T, B, D)
        out = tape.linear(rows, attn.out_proj.weight, attn.out_proj.bias, examples=1)
        return out.transpose(0, 1)

    def feed(h: Tensor) -> Tensor:
        return tape.layer(tape.layer(h, layer.linear1).relu(), layer.linear2)

    if layer.norm_first:
        x = x + attend(tape.norm(x, layer.norm1))
        return x + feed(tape.norm(x, layer.norm2))
    x = tape.norm(x + attend(x), layer.norm1)
    return tape.norm(x + feed(x), layer.norm2)


def _vit(tape: Tape, model: nn.Module, x: Tensor) -> Tensor:
    h = tape.table(tape.patches(x, model.patches).flatten(2).mT, model.places)
    for layer in model.encoder.layers:
        h = _encoder_layer(tape, layer, h)
    return tape.layer(tape.norm(h, model.encoder.norm).mean(1), model.head)


def _classifier(tape: Tape, model: nn.Module, x: Tensor) -> Tensor:
    for layer in model.encoder.layers:
        x = _encoder_layer(tape, layer, x)
    return tape.layer(x.mean(1), model.head)


def _decoder(tape: Tape, model: nn.Module, x: Tensor) -> Tensor:
    h = tape.embedding(x, model.words.weight)
    for block in model.blocks:
        B, T, D = h.shape
        qkv = tape.layer(tape.norm(h, block.first), block.qkv)
        q, k, v = qkv.view(B, T, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + tape.layer(mixed.transpose(1, 2).reshape(B, T, D), block.out)
        up = tape.layer(tape.norm(h, block.second), block.up)
        h = h + tape.layer(F.gelu(up), block.down)
    return tape.layer(tape.norm(h, model.norm), model.head)


def _bert(tape: Tape, model: nn.Module, x: Tensor) -> Tensor:
    bert, head = model.model.bert, model.model.cls.predictions
    embeddings = bert.embeddings
    words = embeddings.word_embeddings.weight
    h = tape.embedding(x, words)
    h = tape.table(h, embeddings.token_type_embeddings.weight, rows=1)
    h = tape.table(h, embeddings.position_embeddings.weight, rows=x.shape[1])
    h = tape.norm(h, embeddings.LayerNorm)
    for layer in bert.encoder.layer:
        attn = layer.attention
        three = [
            tape.layer(h, one).view(*h.shape[:2], 4, -1).transpose(1, 2)
            for one in (attn.self.query, attn.self.key, attn.self.value)
        ]
        mixed = F.scaled_dot_product_attention(*three).transpose(1, 2)
        dense = tape.layer(mixed.reshape(h.shape), attn.output.dense)
        h = tape.norm(dense + h, attn.output.LayerNorm)
        up = F.gelu(tape.layer(h, layer.intermediate.dense))
        h = tape.norm(tape.layer(up, layer.output.dense) + h, layer.output.LayerNorm)
    h = F.gelu(tape.layer(h, head.transform.dense))
    h = tape.norm(h, head.transform.LayerNorm)
    return tape.tied(h, words, head.decoder.bias)


_FORWARD: Mapping[str, _Forward] = {
    "Encoder": _vit,
    "_Classifier": _classifier,
    "Decoder": _decoder,
    "_Bert": _bert,
}
