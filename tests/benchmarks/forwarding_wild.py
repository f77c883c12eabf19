"""Wrappers of other libraries, each around what it is made for; not all need be installed.

Of each the laws judge names that it is there to pass on: a wrapper has every right to
do more in its other methods.
"""

import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from forwarding_subjects import NAMES, Subject, Target, available


def wild() -> Iterator[Subject]:
    """Yield what is installed."""
    for label, distribution, build in (
        ("Django `SimpleLazyObject`", "django", django_lazy_object),
        ("celery `Proxy`", "celery", celery_proxy),
        ("celery `PromiseProxy`", "celery", celery_promise),
        ("`weakref.proxy`", "", weak_proxy),
        ("objproxies `ObjectProxy`", "objproxies", object_proxy),
        ("lazr.delegates `delegate_to`", "lazr.delegates", lazr_delegate),
        ("delegateto `delegate`", "delegateto", delegate_to),
        ("`tempfile._TemporaryFileWrapper`", "", temporary_file),
        ("`codecs.StreamReaderWriter`", "", stream),
        ("SQLAlchemy `scoped_session`", "sqlalchemy", scoped_session),
        ("gymnasium `Wrapper`", "gymnasium", gymnasium_wrapper),
        ("stable-baselines3 `VecEnvWrapper`", "stable-baselines3", vec_env_wrapper),
        ("our `ModuleForwarding`", "", module_forwarding),
        ("torch `OptimizedModule`", "torch", optimized_module),
        ("torch `DataParallel`", "torch", data_parallel),
        ("torch `AveragedModel`", "torch", averaged_model),
        ("torch `CheckpointWrapper`", "torch", checkpoint_wrapper),
        ("Fabric `_FabricModule`", "lightning", fabric_module),
        ("accelerate `AcceleratedScheduler`", "accelerate", accelerated_scheduler),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = available(label, build)
        if found is not None:
            factory, make_target, names, *more = found
            options = more[0] if more else {}
            yield Subject(
                label,
                factory,
                make_target,
                names,
                distribution=distribution,
                more=options,
            )


def django_lazy_object() -> Any:
    from django.utils.functional import SimpleLazyObject as Lazy  # noqa: PLC0415

    def SimpleLazyObject(inner: Any) -> Any:  # noqa: N802
        return Lazy(lambda: inner)

    return SimpleLazyObject, Target, NAMES, {"lazy": Lazy}


def celery_proxy() -> Any:
    from celery.local import Proxy as Late  # noqa: PLC0415

    def Proxy(inner: Any) -> Any:  # noqa: N802
        return Late(lambda: inner)

    return Proxy, Target, NAMES


def celery_promise() -> Any:
    from celery.local import PromiseProxy as Late  # noqa: PLC0415

    def PromiseProxy(inner: Any) -> Any:  # noqa: N802
        return Late(lambda: inner)

    return PromiseProxy, Target, NAMES, {"lazy": Late}


def weak_proxy() -> Any:
    return weakref.proxy, Target, NAMES


def object_proxy() -> Any:
    from objproxies import ObjectProxy  # noqa: PLC0415

    return ObjectProxy, Target, NAMES


def lazr_delegate() -> Any:
    from lazr.delegates import delegate_to  # noqa: PLC0415
    from zope.interface import Attribute, Interface  # noqa: PLC0415

    class IHasNames(Interface):
        a = Attribute("a")
        b = Attribute("b")
        serial = Attribute("serial")

        def m(x: Any, *, k: int = 1) -> Any: ...  # noqa: N805
        async def co(x: Any) -> Any: ...  # noqa: N805

    @delegate_to(IHasNames, context="inner")
    class Delegating:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

    return Delegating, Target, NAMES


def delegate_to() -> Any:
    from delegateto import delegate  # noqa: PLC0415

    @delegate("inner", *NAMES)
    class Delegating:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

    return Delegating, Target, NAMES


def temporary_file() -> Any:
    import io  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    def TemporaryFile(file: Any) -> Any:  # noqa: N802
        return tempfile._TemporaryFileWrapper(file, "name", delete=False)

    return TemporaryFile, io.BytesIO, ("closed", "read", "seek", "getvalue")


def stream() -> Any:
    import codecs  # noqa: PLC0415
    import io  # noqa: PLC0415

    def StreamReaderWriter(file: Any) -> Any:  # noqa: N802
        ways = codecs.getreader("utf-8"), codecs.getwriter("utf-8")
        return codecs.StreamReaderWriter(file, *ways)

    return StreamReaderWriter, io.BytesIO, ("closed", "tell", "getvalue")


def scoped_session() -> Any:
    from sqlalchemy.orm import Session, scoped_session as scoped  # noqa: PLC0415

    def scoped_session(session: Any) -> Any:
        return scoped(lambda: session)

    names = ("autoflush", "info", "bind", "dirty", "add", "commit", "execute")
    return scoped_session, Session, names


def gymnasium_wrapper() -> Any:
    import gymnasium  # noqa: PLC0415

    class Env(gymnasium.Env[int, int]):
        observation_space = action_space = gymnasium.spaces.Discrete(2)
        spec = None

        def step(self, action: int) -> Any:
            return action, 0.0, False, False, {}

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return 0, {"seed": seed, "options": options}

    names = "observation_space", "action_space", "metadata", "render_mode"
    return gymnasium.Wrapper, Env, (*names, "step", "reset", "render", "close")


def vec_env_wrapper() -> Any:
    import gymnasium  # noqa: PLC0415
    from stable_baselines3.common.vec_env import (  # noqa: PLC0415
        DummyVecEnv,
        VecEnvWrapper,
    )

    class Plain(VecEnvWrapper):
        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            return self.venv.step_wait()

    def make_envs() -> Any:
        return DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])

    return Plain, make_envs, ("num_envs", "metadata", "render_mode", "close", "seed")


def linear() -> Any:
    from torch import nn  # noqa: PLC0415

    return nn.Linear(2, 2)


MODULE = ("training", "in_features", "bias")


def module_forwarding() -> Any:
    from torch import nn  # noqa: PLC0415

    from forwarding import ModuleForwarding  # noqa: PLC0415

    class Layer(ModuleForwarding[nn.Module], nn.Module):
        pass

    return Layer, linear, MODULE


def optimized_module() -> Any:
    import torch  # noqa: PLC0415

    def compiled(module: Any) -> Any:
        return torch.compile(module, backend="eager")

    return compiled, linear, MODULE


def data_parallel() -> Any:
    from torch.nn import DataParallel  # noqa: PLC0415

    return DataParallel, linear, MODULE


def averaged_model() -> Any:
    from torch.optim.swa_utils import AveragedModel  # noqa: PLC0415

    return AveragedModel, linear, MODULE


def checkpoint_wrapper() -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (  # noqa: PLC0415
        CheckpointWrapper,
    )

    return CheckpointWrapper, linear, MODULE


def fabric_module() -> Any:
    from lightning.fabric.strategies import SingleDeviceStrategy  # noqa: PLC0415
    from lightning.fabric.wrappers import _FabricModule  # noqa: PLC0415

    strategy = SingleDeviceStrategy()

    def FabricModule(module: Any) -> Any:  # noqa: N802
        return _FabricModule(module, strategy)

    return FabricModule, linear, MODULE


def accelerated_scheduler() -> Any:
    import torch  # noqa: PLC0415
    from accelerate import Accelerator  # noqa: PLC0415
    from accelerate.scheduler import AcceleratedScheduler as Wrapper  # noqa: PLC0415

    Accelerator(cpu=True)

    def make_scheduler() -> Any:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        return torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def AcceleratedScheduler(scheduler: Any) -> Any:  # noqa: N802
        return Wrapper(scheduler, scheduler.optimizer)

    return AcceleratedScheduler, make_scheduler, ("last_epoch", "gamma", "get_last_lr")
