"""More models that private steps are measured on, as users of small machines train them.

They were not used while the engine was made faster, so what they show is not tuned for
them. Shapes: ``B`` examples, ``T`` words or steps, ``R`` rows of all units of a batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import torch
from step_models import Decoder, Encoder, Subject, Tagger
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence


__all__ = ("IN_HAND",)


def _perceptron(*widths: int, B: int) -> Subject:
    layers: list[nn.Module] = []
    for one, other in pairwise(widths):
        layers += [nn.Linear(one, other), nn.ReLU()]
    y = torch.randint(0, widths[-1], (B,))
    return Subject(nn.Sequential(*layers[:-1]), torch.randn(B, widths[0]), y)


def mlp64(B: int = 64) -> Subject:
    return _perceptron(100, 333, 333, 333, 7, B=B)


def mlp512(B: int = 512) -> Subject:
    return _perceptron(784, 1000, 1000, 10, B=B)


def cnn(B: int = 512) -> Subject:
    """The network of Opacus' and TensorFlow Privacy's examples of MNIST."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    return Subject(model, torch.randn(B, 1, 28, 28), torch.randint(0, 10, (B,)))


class _Wider(nn.Module):
    """A block of a wide residual network, with group norm."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = (
            nn.GroupNorm(8, c_in),
            nn.GroupNorm(8, c_out),
        )
        self.first = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if c_in != c_out:
            self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.first_norm(x))
        y = self.second(F.relu(self.second_norm(self.first(active))))
        is_same = isinstance(self.shortcut, nn.Identity)
        return y + (x if is_same else self.shortcut(active))


def wide_resnet(B: int = 16) -> Subject:
    """WRN-16-4 of De et al. (2022)."""
    widths = [16, 64, 128, 256]
    blocks = [
        _Wider(widths[stage] if not i else widths[stage + 1], widths[stage + 1], stride)
        for stage, stride_of_stage in enumerate((1, 2, 2))
        for i in range(2)
        for stride in [1 if i else stride_of_stage]
    ]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        *blocks,
        nn.GroupNorm(8, 256),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return Subject(model, torch.randn(B, 3, 32, 32), torch.randint(0, 10, (B,)))


def decoder(B: int = 8, T: int = 200) -> Subject:
    return Subject(Decoder(6001, 384, 6, 6), *torch.randint(0, 6001, (2, B, T)))


class _Gpt2(nn.Module):
    """GPT-2 of transformers, its output tied to its embedding."""

    def __init__(self, *, width: int, layers: int, words: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415

        config = GPT2Config(
            vocab_size=words,
            n_embd=width,
            n_layer=layers,
            n_head=width // 64,
            bos_token_id=0,
            eos_token_id=0,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        )
        self.model = GPT2LMHeadModel(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x).logits


def gpt2(
    B: int = 4, T: int = 128, *, width: int = 384, layers: int = 6, words: int = 6000
) -> Subject:
    model = _Gpt2(width=width, layers=layers, words=words)
    return Subject(model, *torch.randint(0, words, (2, B, T)))


class _Classifier(nn.Module):
    """Torch's encoder over vectors."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def encoder(B: int = 24, T: int = 200) -> Subject:
    x = torch.randn(B, T, 96)
    return Subject(_Classifier(96, 3), x, torch.randint(0, 10, (B,)))


def vit(B: int = 24) -> Subject:
    x = torch.randn(B, 3, 32, 32)
    return Subject(Encoder(192, 6, 3), x, torch.randint(0, 10, (B,)))


class _Bag(nn.Module):
    """The mean of embedded words."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(rows, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


def wide(B: int = 100) -> Subject:
    x = torch.randint(0, 60_000, (B, 20))
    return Subject(_Bag(60_000, 160), x, torch.randint(0, 10, (B,)))


def tiny_layers(B: int = 32) -> Subject:
    layers = [
        m for _ in range(30) for m in (nn.Linear(24, 24), nn.LayerNorm(24), nn.Tanh())
    ]
    model = nn.Sequential(*layers, nn.Linear(24, 7))
    return Subject(model, torch.randn(B, 24), torch.randint(0, 7, (B,)))


def recurrent(B: int = 32, T: int = 40, *, kind: type[nn.RNNBase] = nn.LSTM) -> Subject:
    x, y = torch.randint(0, 1000, (B, T)), torch.randint(0, 20, (B, T))
    return Subject(Tagger(kind, 96), x, y)


class _Packed(nn.Module):
    """A recurrent layer over sequences of different lengths."""

    def __init__(self, lengths: Tensor) -> None:
        super().__init__()
        self.lengths = lengths
        self.words, self.recurrent = nn.Embedding(1000, 96), nn.GRU(96, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.words(x), self.lengths, batch_first=True, enforce_sorted=True
        )
        outputs: PackedSequence = self.recurrent(packed)[0]
        rows_RD, unit_R = outputs.data, _owners(outputs.batch_sizes)
        total = rows_RD.new_zeros(len(x), rows_RD.shape[1])
        return self.head(total.index_add(0, unit_R, rows_RD))


def _owners(batch_sizes: Tensor) -> Tensor:
    return torch.cat([torch.arange(int(size)) for size in batch_sizes])


def packed(B: int = 32, T: int = 40) -> Subject:
    lengths = torch.randint(1, T + 1, (B,)).sort(descending=True).values
    lengths[0] = T
    x, y = torch.randint(0, 1000, (B, T)), torch.randint(0, 10, (B,))
    return Subject(_Packed(lengths), x, y, units=torch.arange(B))


class _Graphs(nn.Module):
    """Two convolutions over disjoint graphs."""

    def __init__(self, unit_R: Tensor, source: Tensor, target: Tensor) -> None:
        super().__init__()
        self.unit, self.source, self.target = unit_R, source, target
        self.layers = nn.ModuleList([nn.Linear(32, 128), nn.Linear(128, 128)])
        self.head = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x
        for layer in self.layers:
            rows = layer(rows)
            messages = torch.zeros_like(rows).index_add(
                0, self.target, rows[self.source]
            )
            rows = (rows + messages).relu()
        total = rows.new_zeros(int(self.unit.max()) + 1, rows.shape[1])
        return self.head(total.index_add(0, self.unit, rows))


def graphs(B: int = 64) -> Subject:
    sizes_B = torch.randint(1, 49, (B,))
    unit_R = torch.arange(B).repeat_interleave(sizes_B)
    source = torch.arange(len(unit_R)).repeat(4)
    within = torch.randint(1 << 30, source.shape) % sizes_B[unit_R[source]]
    target = (sizes_B.cumsum(0) - sizes_B)[unit_R[source]] + within
    model = _Graphs(unit_R, source, target)
    y = torch.randint(0, 5, (B,))
    return Subject(model, torch.randn(len(unit_R), 32), y, units=torch.arange(B))


IN_HAND: Mapping[str, Callable[..., Subject]] = {
    "MLP, 64": mlp64,
    "MLP, 512": mlp512,
    "CNN of MNIST": cnn,
    "WRN-16-4": wide_resnet,
    "decoder of 6 layers": decoder,
    "GPT-2, 6 layers": gpt2,
    "encoder": encoder,
    "ViT of 6 layers": vit,
    "table of 60,000": wide,
    "30 tiny layers": tiny_layers,
    "LSTM of 96": recurrent,
    "GRU of 96": partial(recurrent, kind=nn.GRU),
    "packed GRU": packed,
    "graphs": graphs,
}
