"""The models that the engine is measured on, and the ways to take a private step.

Shapes: ``B`` examples.
"""

from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import (
    DPOptimizer as OpacusOptimizer,
    DPOptimizerFastGradientClipping,
)
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.clipping import FlatClipping
from dp.noise import GaussianNoise
from dp.per_sample import Engine


__all__ = ("LARGE", "MODELS", "ON_GPU", "WAYS", "Subject")

_BOUND = 1.0


class Subject:
    """A model, a batch, and the loss of every example."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model = model
        self.x = x
        self.y = y

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


class _Decoder(nn.Module):
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
    return Subject(_Decoder(5000, 256, 4, 4), *words)


def tiny_layers(B: int = 2) -> Subject:
    return Subject(_Decoder(50, 16, 24, 2), *torch.randint(0, 50, (2, B, 8)))


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
}


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(_trained(model), lr=1e-4)


def non_private(subject: Subject) -> Callable[[], None]:
    optimizer = _sgd(subject.model)

    def step() -> None:
        optimizer.zero_grad()
        subject.losses(subject.model(subject.x), subject.y).mean().backward()
        optimizer.step()

    return step


def private(subject: Subject, noise: GaussianNoise | None) -> Callable[[], None]:
    optimizer, engine = _sgd(subject.model), Engine()
    clipping = FlatClipping(max_grad_norm=_BOUND)
    parameters = _trained(subject.model)
    group_of = clipping.group_of(parameters)

    def step() -> None:
        optimizer.zero_grad()
        losses_B = subject.losses(subject.model(subject.x), subject.y)
        gradients = engine.gradients(losses_B, parameters)
        del losses_B
        factors_GB = clipping.factors(gradients.squared_norms(group_of).sqrt())
        sums = [torch.empty_like(p) for p in parameters]
        gradients.add_weighted_sum(factors_GB, group_of, sums, beta=0)
        del gradients
        if noise is not None:
            noise.add_(sums, stddev=_BOUND)
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total
        optimizer.step()

    return step


def opacus(subject: Subject, mode: str) -> Callable[[], None]:
    kwargs = {"batch_first": True, "loss_reduction": "mean"}
    model = (
        GradSampleModule(subject.model, force_functorch=mode == "functorch", **kwargs)
        if mode != "ew"
        else _expanded(subject.model, kwargs)
    )
    optimizer = OpacusOptimizer(
        _sgd(model),
        noise_multiplier=1.0,
        max_grad_norm=_BOUND,
        expected_batch_size=len(subject.x),
    )

    def step() -> None:
        optimizer.zero_grad()
        subject.losses(model(subject.x), subject.y).mean().backward()
        optimizer.step()

    return step


def _expanded(model: nn.Module, kwargs: dict[str, object]) -> nn.Module:
    from opacus.grad_sample import GradSampleModuleExpandedWeights  # noqa: PLC0415

    return GradSampleModuleExpandedWeights(model, **kwargs)


def ghost(subject: Subject) -> Callable[[], None]:
    model = GradSampleModuleFastGradientClipping(
        subject.model, max_grad_norm=_BOUND, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        _sgd(model),
        noise_multiplier=1.0,
        max_grad_norm=_BOUND,
        expected_batch_size=len(subject.x),
    )

    class Losses(nn.Module):
        reduction = "mean"

        def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
            losses_B = subject.losses(outputs, y)
            return losses_B.mean() if self.reduction == "mean" else losses_B

    criterion = DPLossFastGradientClipping(model, optimizer, Losses())

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(subject.x), subject.y).backward()
        optimizer.step()

    return step


def batched(subject: Subject) -> Callable[[], None]:
    model, optimizer = subject.model, _sgd(subject.model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rest = {n: p for n, p in model.named_parameters() if not p.requires_grad}

    def loss(values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, ({**values, **rest},), (x[None],))
        return subject.losses(outputs, y[None])[0]

    gradients = vmap(grad(loss), (None, 0, 0), randomness="different")

    def step() -> None:
        optimizer.zero_grad()
        detached = {n: p.detach() for n, p in trained.items()}
        found = gradients(detached, subject.x, subject.y)
        norms_B = sum(g.flatten(1).square().sum(1) for g in found.values()).sqrt()
        factors_B = (_BOUND / norms_B).clamp(max=1)
        for name, parameter in trained.items():
            total = torch.einsum("b...,b->...", found[name], factors_B)
            parameter.grad = total + torch.randn_like(total)
        optimizer.step()

    return step


def fast_dp(
    subject: Subject, noise_multiplier: float, *, origin: bool = False
) -> Callable[[], None]:
    """Return a step of FastDP's.

    Its backward pass also finds the ordinary gradients, which are thrown away: of
    all parameters, or of ``origin_params`` alone, for which it proposes the first
    layer's bias or weight.
    """
    from fastDP import PrivacyEngine  # noqa: PLC0415 -- not on the package index

    model, optimizer, B = subject.model, _sgd(subject.model), len(subject.x)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    bias = trained[0].replace("weight", "bias")
    first = bias if bias in trained else trained[0]
    with redirect_stdout(StringIO()):
        engine = PrivacyEngine(
            model,
            batch_size=B,
            sample_size=100 * B,
            epochs=1,
            noise_multiplier=noise_multiplier,
            max_grad_norm=_BOUND,
            clipping_mode="MixOpt",
            clipping_fn="Abadi",
            loss_reduction="sum",
            origin_params=[first] if origin else None,
        )
    engine.attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        subject.losses(model(subject.x), subject.y).sum().backward()
        optimizer.step()

    return step


WAYS: Mapping[str, Callable[[Subject], Callable[[], None]]] = {
    "non-private": non_private,
    "dp, no noise": partial(private, noise=None),
    "dp": partial(private, noise=GaussianNoise()),
    "dp, fast noise": partial(private, noise=GaussianNoise(rng="fast")),
    "Opacus hooks": partial(opacus, mode="hooks"),
    "Opacus functorch": partial(opacus, mode="functorch"),
    "Opacus ew": partial(opacus, mode="ew"),
    "Opacus ghost": ghost,
    "vmap": batched,
    "FastDP, no noise": partial(fast_dp, noise_multiplier=0.0),
    "FastDP": partial(fast_dp, noise_multiplier=1.0),
    "FastDP origin, no noise": partial(fast_dp, noise_multiplier=0.0, origin=True),
    "FastDP origin": partial(fast_dp, noise_multiplier=1.0, origin=True),
}
