"""Wrappers of torch optimizers that the laws judge; not all of it need be installed."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from forwarding_subjects import Subject, available


NAMES = ("param_groups", "state", "defaults")


def optimizers() -> Iterator[Subject]:
    """Yield ours, and the wrappers that training libraries put around an optimizer."""
    for label, distribution, build in (
        ("`forwarded` in an `Optimizer`", "", declared),
        ("dp `DPOptimizer`", "", private),
        ("copied references, as in Opacus up to 1.5.1", "", copied),
        ("Opacus `DPOptimizer`", "opacus", opacus),
        ("accelerate `AcceleratedOptimizer`", "accelerate", accelerate),
        ("Lightning `LightningOptimizer`", "lightning", lightning),
        ("Fabric `_FabricOptimizer`", "lightning", fabric),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            factory = available(label, build)
        if factory is not None:
            yield Subject(label, factory, SGD, NAMES, values(), distribution)


def SGD() -> Any:  # noqa: N802 -- Read in counterexamples as what it builds.
    """Build an optimizer that is still new, so that any groups fit its state."""
    import torch  # noqa: PLC0415

    weight = torch.nn.Parameter(torch.ones(1))
    return torch.optim.SGD([weight], lr=0.1)


def values() -> dict[str, Any]:
    """Return what is assigned: groups, states and defaults as they are in practice."""
    from hypothesis import strategies as st  # noqa: PLC0415

    options = st.fixed_dictionaries({"lr": st.sampled_from([0.5, 0.25])})
    groups = st.fixed_dictionaries(
        {"params": st.just([]), "lr": st.sampled_from([0.5, 0.25])}
    )
    return {
        "param_groups": st.lists(groups, min_size=1, max_size=1),
        "state": st.dictionaries(st.integers(0, 2), options, max_size=1),
        "defaults": options,
    }


def declared() -> Callable[[Any], Any]:
    from torch.optim import Optimizer  # noqa: PLC0415

    from forwarding import ForwardingMeta, forwarded, target  # noqa: PLC0415

    class Declared(Optimizer, metaclass=ForwardingMeta):
        inner = target(Optimizer)
        param_groups = forwarded(inner.param_groups)
        state = forwarded(inner.state)
        defaults = forwarded(inner.defaults)

        def __init__(self, inner: Optimizer) -> None:
            self.inner = inner

        def __getstate__(self) -> dict[str, Any]:
            return vars(self)

        def __setstate__(self, state: dict[str, Any]) -> None:
            vars(self).update(state)

        def step(self, closure: Any = None) -> Any:
            return self.inner.step(closure)

    return Declared


def private() -> Callable[[Any], Any]:
    import dp  # noqa: PLC0415

    plan = dp.plan_for(
        target_epsilon=3.0,
        target_delta=1e-5,
        steps=10,
        expected_batch_size=10,
        max_grad_norm=1.0,
    )

    def DPOptimizer(inner: Any) -> Any:  # noqa: N802
        return dp.DPOptimizer(inner, plan=plan)

    return DPOptimizer


def copied() -> Callable[[Any], Any]:
    from torch.optim import Optimizer  # noqa: PLC0415

    class Copied(Optimizer):
        def __init__(self, inner: Optimizer) -> None:
            self.inner = inner
            self.param_groups = inner.param_groups
            self.state = inner.state
            self.defaults = inner.defaults

        def step(self, closure: Any = None) -> Any:
            return self.inner.step(closure)

    return Copied


def opacus() -> Callable[[Any], Any]:
    from opacus.optimizers import DPOptimizer as Private  # noqa: PLC0415

    def DPOptimizer(inner: Any) -> Any:  # noqa: N802
        return Private(
            inner, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1
        )

    return DPOptimizer


def accelerate() -> Callable[[Any], Any]:
    from accelerate import Accelerator  # noqa: PLC0415
    from accelerate.optimizer import AcceleratedOptimizer  # noqa: PLC0415

    Accelerator(cpu=True)
    return AcceleratedOptimizer


def lightning() -> Callable[[Any], Any]:
    from lightning.pytorch.core.optimizer import LightningOptimizer  # noqa: PLC0415

    return LightningOptimizer


def fabric() -> Callable[[Any], Any]:
    from lightning.fabric.strategies import SingleDeviceStrategy  # noqa: PLC0415
    from lightning.fabric.wrappers import _FabricOptimizer  # noqa: PLC0415

    strategy = SingleDeviceStrategy()

    def FabricOptimizer(inner: Any) -> Any:  # noqa: N802
        return _FabricOptimizer(inner, strategy)

    return FabricOptimizer
