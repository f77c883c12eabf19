"""The models that private steps are measured on.

Shapes: ``B`` examples, ``T`` words, ``D`` features.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention


__all__ = ("LARGE", "MODELS", "ON_GPU", "Decoder", "Encoder", "Subject", "Tagger")


class Subject:
    """A model, a batch, and the loss of every example.

    Units are given where the rows of a batch lie along no axis of examples.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, units: Tensor | None = None
    ) -> None:
        self.model = model
        self.x = x
        self.y = y
        self.units = units

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        if outputs.dim() == 3:
            losses = F.cross_entropy(
                outputs.flatten(0, 1), y.flatten(), reduction="none"
            )
            return losses.view(y.shape).mean(1)
        return F.cross_entropy(outputs, y, reduction="none")


def mlp(B: int = 256) -> Subject:
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(512, 10))
    return Subject(model, torch.randn(B, 784), torch.randint(0, 10, (B,)))


def cnn(B: int = 256) -> Subject:
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    return Subject(model, torch.randn(B, 1, 28, 28), torch.randint(0, 10, (B,)))


class _Block(nn.Module):
    """One pre-norm layer of a decoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(self.first(x)).view(B, T, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Decoder(nn.Module):
    """A small language model."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.words(x))))


def transformer(B: int = 32, T: int = 128) -> Subject:
    words = torch.randint(0, 5000, (2, B, T))
    return Subject(Decoder(5000, 256, 4, 4), *words)


def tiny_layers(B: int = 2) -> Subject:
    return Subject(Decoder(50, 16, 24, 2), *torch.randint(0, 50, (2, B, 8)))


class _Wide(nn.Module):
    """A large table, and few rows of it in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50_000, 256)
        self.first, self.second = nn.Linear(256, 4096), nn.Linear(4096, 1024)
        self.head = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x).mean(1)
        return self.head(F.relu(self.second(F.relu(self.first(h)))))


def wide(B: int = 32) -> Subject:
    return Subject(
        _Wide(), torch.randint(0, 50_000, (B, 32)), torch.randint(0, 10, (B,))
    )


class _Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, c_out) for _ in range(2))
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def resnet(B: int = 32) -> Subject:
    blocks = [_Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2)]
    stem, head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(64, 10)
    model = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return Subject(model, torch.randn(B, 3, 32, 32), torch.randint(0, 10, (B,)))


class _Adapted(nn.Module):
    """A frozen linear layer with trained factors of low rank beside it."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(requires_grad=False)
        self.a = nn.Linear(layer.in_features, rank, bias=False)
        self.b = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.b(self.a(x))


def lora(B: int = 4, T: int = 128) -> Subject:
    block = _Block(768, 12).requires_grad_(requires_grad=False)
    block.qkv, block.out = _Adapted(block.qkv, 8), _Adapted(block.out, 8)
    x = torch.randn(B, T, 768)
    model = nn.Sequential(block, nn.Flatten(), nn.Unflatten(1, (T, 768)))
    return Subject(model, x, torch.randint(0, 768, (B, T)))


class _Gpt2(nn.Module):
    """The model of GPT-2's small size, from transformers, with random weights."""

    def __init__(self, *, autocast: bool, rank: int = 0) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415

        config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        self.model = GPT2LMHeadModel(config)
        self.autocast = autocast
        if rank:
            from peft import LoraConfig, get_peft_model  # noqa: PLC0415

            adapters = LoraConfig(
                r=rank, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.0
            )
            self.model = get_peft_model(self.model, adapters)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model(input_ids=x).logits.float()


def gpt2(B: int = 8, T: int = 512, *, autocast: bool = False, rank: int = 0) -> Subject:
    words = torch.randint(0, 50257, (2, B, T))
    return Subject(_Gpt2(autocast=autocast, rank=rank), *words)


def small_mlp(B: int = 64) -> Subject:
    """What a user of tables trains."""
    layers = [nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    return Subject(model, torch.randn(B, 256), torch.randint(0, 10, (B,)))


class Encoder(nn.Module):
    """Torch's own encoder behind patches of an image: a small vision transformer."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(torch.zeros(64, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens_BTD = self.patches(x).flatten(2).mT + self.places
        return self.head(self.encoder(tokens_BTD).mean(1))


def vit(B: int = 32) -> Subject:
    x = torch.randn(B, 3, 32, 32)
    return Subject(Encoder(192, 6, 3), x, torch.randint(0, 10, (B,)))


def bert(B: int = 8, T: int = 64) -> Subject:
    """BERT of transformers at a small size."""
    return Subject(_Bert(), *torch.randint(0, 5000, (2, B, T)))


class _Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForMaskedLM  # noqa: PLC0415

        config = BertConfig(
            vocab_size=5000,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model = BertForMaskedLM(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x).logits


class Tagger(nn.Module):
    """Words to tags by a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, width)
        self.recurrent = kind(width, width, batch_first=True)
        self.tags = nn.Linear(width, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.tags(self.recurrent(self.words(x))[0])


def recurrent(B: int = 32, T: int = 48, *, kind: type[nn.RNNBase] = nn.LSTM) -> Subject:
    x, y = torch.randint(0, 1000, (B, T)), torch.randint(0, 20, (B, T))
    return Subject(Tagger(kind, 128), x, y)


LARGE: Mapping[str, Callable[..., Subject]] = {
    "GPT-2 small": gpt2,
    "GPT-2 small, bf16": partial(gpt2, autocast=True),
    "GPT-2 small, LoRA, bf16": partial(gpt2, autocast=True, rank=8),
}
# How many times the usual batch keeps a GPU busy.
ON_GPU: Mapping[str, int] = {
    "MLP": 32,
    "CNN": 16,
    "Transformer": 4,
    "wide": 16,
    "ResNet": 64,
    "LoRA": 16,
}

MODELS: Mapping[str, Callable[..., Subject]] = {
    "MLP": mlp,
    "CNN": cnn,
    "Transformer": transformer,
    "wide": wide,
    "ResNet": resnet,
    "LoRA": lora,
    "24 tiny layers": tiny_layers,
    "small MLP": small_mlp,
    "ViT": vit,
    "BERT": bert,
    "LSTM": recurrent,
    "GRU": partial(recurrent, kind=nn.GRU),
}
