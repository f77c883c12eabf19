"""The ways to take a private step that are measured.

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
from step_by_hand import by_hand
from step_models import Subject
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import dp
from dp.clipping import FlatClipping
from dp.noise import GaussianNoise
from dp.per_sample import Engine


__all__ = ("WAYS",)

_BOUND = 1.0


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
        gradients = engine.gradients(losses_B, parameters, units=subject.units)
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


def in_hand(subject: Subject, noise_multiplier: float) -> Callable[[], None]:
    """Return a step as users take it: with plan, ledger, checks and guards."""
    plan = dp.PrivacyPlan(
        sampling=dp.Unamplified(),
        noise_multiplier=noise_multiplier,
        max_grad_norm=_BOUND,
        expected_batch_size=float(len(subject.y)),
        steps=1_000_000,
        target_delta=1e-6,
        neighboring_relation="zero_out",
    )
    optimizer = dp.DPOptimizer(_sgd(subject.model), plan=plan)

    def step() -> None:
        optimizer.zero_grad()
        losses_B = subject.losses(subject.model(subject.x), subject.y)
        optimizer.backward(losses_B, units=subject.units)
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
    "by hand, no noise": partial(by_hand, noise=False),
    "by hand": partial(by_hand, noise=True),
    "dp, no noise": partial(private, noise=None),
    "dp": partial(private, noise=GaussianNoise()),
    "DPOptimizer, no noise": partial(in_hand, noise_multiplier=0.0),
    "DPOptimizer": partial(in_hand, noise_multiplier=1.0),
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
