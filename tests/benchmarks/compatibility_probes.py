"""Probes of the compatibility table: each asserts an effect, for any wrapper.

A probe takes the name of a wrapper, and is right only if torch's own optimizer passes
it. Its message on failure goes into the table.
"""

import copy
import importlib.util
import io
import os
import pickle
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from compatibility import BATCH, RATE, batch_of, subject, unamplified
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import SWALR

import dp


PROBES = []
TIMM = importlib.util.find_spec("timm")  # Before a stub of it is made.


def probe(consumer, package, behaviour):
    def register(function):
        PROBES.append((consumer, package, behaviour, function))
        return function

    return register


def like_torch(name, use, kind=torch.optim.SGD, **arguments):
    """Assert that *use* moves the weights as it does with torch's optimizer."""
    moved = []
    for each in (name, "torch"):
        made = subject(each, kind, **arguments)
        before = made.weights()
        use(made)
        moved.append(made.weights() - before)
    assert moved[1].abs().max() > 0, "the probe moves nothing"
    ratio = (moved[0].norm() / moved[1].norm()).item()
    off = not torch.allclose(moved[0], moved[1], rtol=1e-3, atol=1e-6)
    assert not off, f"the update is {ratio:.3g} times torch's"


# torch


@probe("torch", "torch", "a step")
def _(name):
    like_torch(name, lambda made: made.step())


@probe("torch", "torch", "assigning `param_groups` sets the rate that is used")
def _(name):
    def use(made):
        made.optimizer.param_groups = [
            {**g, "lr": 0.03} for g in made.optimizer.param_groups
        ]
        made.step()

    like_torch(name, use)


@probe("torch", "torch", "assigning `state` resets the moments that are used")
def _(name):
    def use(made):
        made.step()
        made.optimizer.state = type(made.inner.state)(dict)
        made.step()

    like_torch(name, use, momentum=0.9)


@probe("torch", "torch", "`load_state_dict`, then writing the rate")
def _(name):
    def use(made):
        made.optimizer.load_state_dict(made.optimizer.state_dict())
        made.optimizer.param_groups[0]["lr"] = 0.03
        made.step()

    like_torch(name, use)


@probe("torch", "torch", "`zero_grad()` sets gradients to None")
def _(name):
    made = subject(name)
    made.step()
    made.optimizer.zero_grad()
    grads = [p.grad for p in made.model.parameters()]
    assert all(g is None for g in grads), "gradients are zeros"


@probe("torch", "torch", "gradients cleared by `model.zero_grad()` only")
def _(name):
    def use(made):
        for _ in range(2):
            made.model.zero_grad()
            made.loss(batch_of()).backward()
            made.optimizer.step()

    like_torch(name, use)


@probe("torch", "torch", "`step(closure)` returns the loss")
def _(name):
    made = subject(name)

    def closure():
        made.optimizer.zero_grad()
        loss = made.loss(batch_of())
        loss.backward()
        return loss.item()

    assert isinstance(made.optimizer.step(closure), float), "None was returned"


@probe("torch", "torch", "`add_param_group`, then a step without `zero_grad`")
def _(name):
    def use(made):
        made.optimizer.add_param_group({"params": [], "lr": 0.5})
        made.loss(batch_of()).backward()
        made.optimizer.step()
        assert len(made.inner.param_groups) == 2, "the group was not added"

    like_torch(name, use)


@probe("torch", "torch", "`register_step_pre_hook` and `_post_hook` fire once")
def _(name):
    made, seen = subject(name), []
    made.optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    made.optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    made.step()
    assert seen == ["pre", "post"], f"{len(seen)} calls"


@probe("torch", "torch", "`register_state_dict_post_hook` fires")
def _(name):
    made, seen = subject(name), []
    made.optimizer.register_state_dict_post_hook(lambda *_: seen.append(1))
    made.optimizer.state_dict()
    assert seen == [1], f"{len(seen)} calls"


@probe("torch", "torch", "a global step hook fires once")
def _(name):
    made, seen = subject(name), []
    handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    try:
        made.step()
    finally:
        handle.remove()
    assert seen == [1], f"{len(seen)} calls"


@probe("torch", "torch", "a knob of the optimizer is written through the wrapper")
def _(name):
    made = subject(name, WithKnob)
    made.optimizer.knob = 3
    assert made.inner.knob == 3, "it stays on the wrapper"


class WithKnob(torch.optim.SGD):
    """An optimizer with an attribute and modes of its own, as schedule-free ones."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.knob, self.mode = 1, "none"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


@probe("torch", "torch", "`copy.deepcopy` makes an optimizer that can step")
def _(name):
    made = subject(name)
    made.step()
    twin = copy.deepcopy(made.optimizer)
    assert twin.param_groups[0]["lr"] == RATE
    assert twin.param_groups is not made.optimizer.param_groups, "it shares its groups"


@probe("torch", "torch", "others of the class still step after a `deepcopy`")
def _(name):
    made, other = subject(name), subject(name)
    with suppress(Exception):  # Whether that works is another row.
        copy.deepcopy(made.optimizer)
    other.step()


@probe("torch", "torch", "`pickle` round trip")
def _(name):
    made = subject(name)
    twin = pickle.loads(pickle.dumps(made.optimizer))  # noqa: S301 -- our own bytes
    assert twin.param_groups[0]["lr"] == RATE


@probe(
    "torch", "torch", "state dict saved and loaded with `weights_only`, moments kept"
)
def _(name):
    def use(made):
        made.step()
        file = io.BytesIO()
        torch.save(made.optimizer.state_dict(), file)
        file.seek(0)
        made.optimizer.load_state_dict(torch.load(file, weights_only=True))
        made.step()

    like_torch(name, use, torch.optim.Adam)


@probe("torch", "torch", "`torch.compile(optimizer.step)`")
def _(name):
    def use(made):
        step = torch.compile(made.optimizer.step, backend="eager")
        made.loss(batch_of()).backward()
        step()

    like_torch(name, use)


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.5, step_size_up=2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.5)],
        milestones=[1],
    ),
    "SWALR": lambda o: SWALR(o, 0.5, anneal_epochs=2),
}
for _name, _make in SCHEDULERS.items():

    @probe("torch", "torch", f"`{_name}` drives the update")
    def _(name, make=_make):
        def use(made):
            scheduler = make(made.optimizer)
            for _ in range(3):
                made.step()
                scheduler.step()

        like_torch(name, use, momentum=0.9)


@probe("torch", "torch", "a scheduler after `load_state_dict`")
def _(name):
    def use(made):
        made.optimizer.load_state_dict(made.optimizer.state_dict())
        scheduler = lr_scheduler.StepLR(made.optimizer, 1, gamma=0.5)
        for _ in range(3):
            made.step()
            scheduler.step()

    like_torch(name, use)


@probe("torch", "torch", "`GradScaler` changes no update")
def _(name):
    def use(made):
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(2):
            made.optimizer.zero_grad()
            scaler.scale(made.loss(batch_of())).backward()
            scaler.step(made.optimizer)
            scaler.update()

    like_torch(name, use)


@probe(
    "torch", "torch", "distributed checkpoint: `get_` and `set_optimizer_state_dict`"
)
def _(name):
    def use(made):
        model = made.model
        state = get_optimizer_state_dict(model, made.optimizer)
        set_optimizer_state_dict(model, made.optimizer, state)
        assert made.optimizer.param_groups[0]["lr"] == RATE, "the rate stays 0"
        made.step()

    like_torch(name, use, torch.optim.Adam)


@probe("torch", "torch", "profiler names the optimizer that the user holds")
def _(name):
    made = subject(name)
    with torch.profiler.profile() as profile:
        made.step()
    expected = f"Optimizer.step#{type(made.optimizer).__name__}.step"
    names = {event.name for event in profile.events()}
    assert expected in names, "clipping and noise are not attributed"


# accelerate


def accelerated(name, kind=torch.optim.SGD, *, parts=1, **arguments):
    from accelerate import Accelerator  # noqa: PLC0415 -- optional
    from accelerate.state import AcceleratorState, GradientState  # noqa: PLC0415

    for state in (AcceleratorState, GradientState):
        state._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    made = subject(name, kind, parts=parts, **arguments)
    prepared = accelerator.prepare(made.optimizer)
    return accelerator, made, prepared


def accelerate_like_torch(name, use, kind=torch.optim.SGD, **arguments):
    moved = []
    for each in (name, "torch"):
        accelerator, made, prepared = accelerated(each, kind, **arguments)
        before = made.weights()
        use(accelerator, made, prepared)
        moved.append(made.weights() - before)
    ratio = (moved[0].norm() / moved[1].norm()).item()
    close = torch.allclose(moved[0], moved[1], rtol=1e-3, atol=1e-6)
    assert close, f"the update is {ratio:.3g} times torch's"


@probe("accelerate", "accelerate", "assigning `param_groups` on the prepared optimizer")
def _(name):
    def use(accelerator, made, prepared):
        prepared.param_groups = [{**g, "lr": 0.03} for g in prepared.param_groups]
        accelerator.backward(made.loss(batch_of()))
        prepared.step()

    accelerate_like_torch(name, use)


@probe("accelerate", "accelerate", "a prepared scheduler drives the update")
def _(name):
    def use(accelerator, made, prepared):
        scheduler = accelerator.prepare(lr_scheduler.StepLR(prepared, 1, gamma=0.5))
        for _ in range(3):
            accelerator.backward(made.loss(batch_of()))
            prepared.step()
            scheduler.step()
            prepared.zero_grad()

    accelerate_like_torch(name, use)


@probe("accelerate", "accelerate", "`accumulate` over two parts divides once")
def _(name):
    def use(accelerator, made, prepared):
        x, y = batch_of()
        for part in (slice(0, 4), slice(4, 8)):
            with accelerator.accumulate(made.model):
                accelerator.backward(made.loss((x[part], y[part])))
                prepared.step()
                prepared.zero_grad()

    accelerate_like_torch(name, use, parts=2)


@probe("accelerate", "accelerate", "`train()` and `eval()` reach the optimizer")
def _(name):
    _, made, prepared = accelerated(name, WithKnob)
    prepared.eval()
    assert made.inner.mode == "eval", "they are dropped"


@probe("accelerate", "accelerate", "`save_state` and `load_state` keep the moments")
def _(name):
    def use(accelerator, made, prepared):
        for _ in range(2):
            accelerator.backward(made.loss(batch_of()))
            prepared.step()
            prepared.zero_grad()
            with tempfile.TemporaryDirectory() as folder:
                accelerator.save_state(folder)
                accelerator.load_state(folder)

    accelerate_like_torch(name, use, torch.optim.Adam)


@probe("accelerate", "accelerate", "`copy.deepcopy` of the prepared optimizer")
def _(name):
    _, made, prepared = accelerated(name)
    twin = copy.deepcopy(prepared)
    assert twin.param_groups is not made.optimizer.param_groups


# transformers


@probe("transformers", "transformers", "`Trainer` takes three steps")
def _(name):
    from transformers import Trainer, TrainingArguments  # noqa: PLC0415 -- optional

    class Learner(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):  # noqa: FBT002
            del return_outputs
            outputs = model(inputs["x"])
            if name == "dp":
                losses = cross_entropy(outputs, inputs["y"], reduction="none")
                return made.optimizer.private_loss(losses)
            return cross_entropy(outputs, inputs["y"])

    made = subject(name)
    x, y = batch_of()
    data = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=3,
            per_device_train_batch_size=BATCH,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            remove_unused_columns=False,
            logging_strategy="no",
            max_grad_norm=0.0,
        )
        before = made.weights()
        Learner(
            made.model, args, train_dataset=data, optimizers=(made.optimizer, None)
        ).train()
    assert (made.weights() - before).abs().max() > 0, "nothing was trained"


# Lightning


def fitted(made, *, manual=False, parts=1, hook=None):
    from lightning.pytorch import LightningModule, Trainer  # noqa: PLC0415 -- optional

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = made.model
            self.automatic_optimization = not manual

        def training_step(self, batch, _):
            optimizer = self.optimizers()
            loss = made.loss(batch, optimizer)
            if hook is not None:
                hook(optimizer)
            if manual:
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self):
            return made.optimizer

    x, y = batch_of()
    data = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH // parts)
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=parts,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), loader)


@probe("Lightning", "lightning", "automatic optimisation")
def _(name):
    like_torch(name, fitted)


@probe("Lightning", "lightning", "manual optimisation")
def _(name):
    like_torch(name, lambda made: fitted(made, manual=True))


@probe("Lightning", "lightning", "`accumulate_grad_batches=2` divides once")
def _(name):
    like_torch(name, lambda made: fitted(made, parts=2), parts=2)


@probe("Lightning", "lightning", "the rate written through `self.optimizers()`")
def _(name):
    def hook(optimizer):
        optimizer.param_groups[0]["lr"] = 0.03

    like_torch(name, lambda made: fitted(made, hook=hook))


@probe("Lightning", "lightning", "Fabric: setup, backward, step")
def _(name):
    from lightning import Fabric  # noqa: PLC0415 -- optional

    def use(made):
        fabric = Fabric(accelerator="cpu", devices=1)
        made.model, optimizer = fabric.setup(made.model, made.optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            fabric.backward(made.loss(batch_of(), optimizer))
            optimizer.step()

    like_torch(name, use)


# ignite, torch-ema, timm


@probe("ignite", "ignite", "its scheduler drives the update after `load_state_dict`")
def _(name):
    from ignite.engine import Engine, Events  # noqa: PLC0415 -- optional
    from ignite.handlers import PiecewiseLinear  # noqa: PLC0415

    def use(made):
        made.optimizer.load_state_dict(made.optimizer.state_dict())
        trainer = Engine(lambda *_: made.step())
        schedule = PiecewiseLinear(made.optimizer, "lr", [(0, 0.1), (3, 0.4)])
        trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
        trainer.run([0, 1, 2])

    like_torch(name, use)


@probe("torch-ema", "torch_ema", "an average of the weights")
def _(name):
    from torch_ema import ExponentialMovingAverage  # noqa: PLC0415 -- optional

    made = subject(name)
    average = ExponentialMovingAverage(made.model.parameters(), decay=0.5)
    made.step()
    average.update()
    with average.average_parameters():
        pass


def timm(name):
    """Return a module of timm by itself: its packages import torchvision."""
    root = Path(TIMM.origin).parent
    for package in ("timm", "timm.optim", "timm.utils"):
        stub = ModuleType(package)
        stub.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
        sys.modules.setdefault(package, stub)
    return importlib.import_module(f"timm.{name}")


@probe("timm", "timm", "its scheduler drives the update")
def _(name):
    def use(made):
        scheduler = timm("scheduler").CosineLRScheduler(made.optimizer, t_initial=4)
        for number in range(3):
            scheduler.step(number)
            made.step()

    like_torch(name, use)


@probe("timm", "timm", "`Lookahead` around it")
def _(name):
    def use(made):
        optimizer = timm("optim.lookahead").Lookahead(made.optimizer, k=2)
        for _ in range(4):
            optimizer.zero_grad()
            made.loss(batch_of()).backward()
            optimizer.step()

    like_torch(name, use)


@probe("timm", "timm", "`NativeScaler` changes no update")
def _(name):
    def use(made):
        scaler = timm("utils.cuda").NativeScaler("cpu")
        for _ in range(2):
            made.optimizer.zero_grad()
            loss = made.loss(batch_of())
            scaler(loss, made.optimizer, parameters=made.model.parameters())

    like_torch(name, use)


@cache
def deepspeed():
    """Import DeepSpeed for one process on CPU; it keeps that process group for good."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    found = importlib.import_module("deepspeed")
    # A faster all-reduce, which takes a minute to compile.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    return found


def by_engine(stage):
    def use(made):
        made.model, *_ = deepspeed().initialize(
            model=made.model,
            optimizer=made.optimizer,
            config={
                "train_micro_batch_size_per_gpu": BATCH,
                "gradient_clipping": 0.0,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
            },
            dist_init_required=False,
        )
        for _ in range(2):
            made.model.backward(made.loss(batch_of()))
            made.model.step()

    return use


@probe("DeepSpeed", "deepspeed", "engine of stage 0")
def _(name):
    like_torch(name, by_engine(0))


@probe("DeepSpeed", "deepspeed", "stages 1 and 2 train, or say that they cannot")
def _(name):
    for stage in (1, 2):
        try:
            like_torch(name, by_engine(stage))
        except (ValueError, RuntimeError, IndexError, dp.PrivacyError) as error:
            if "ZeRO" not in str(error):
                raise


# What only a private optimizer has to do; torch passes by having nothing to guard.


def expect_refused(name, action, told):
    if name in ("torch", "copies"):
        return
    try:
        action()
    except (dp.PrivacyError, ValueError, RuntimeError):
        return
    raise AssertionError(told)


@probe("privacy", "torch", "the inner optimizer cannot step by itself")
def _(name):
    made = subject(name)
    made.loss(batch_of()).backward()
    expect_refused(name, made.inner.step, "raw gradients are applied, and not counted")


@probe("privacy", "torch", "another optimizer cannot step the same weights")
def _(name):
    made = subject(name)
    rebuilt = torch.optim.AdamW(made.optimizer.param_groups)
    made.loss(batch_of()).backward()
    expect_refused(name, rebuilt.step, "raw gradients are applied, and not counted")


@probe("privacy", "torch", "noise is added once a scheduler was built")
def _(name):
    if name in ("torch", "copies"):
        return
    made = subject(name)
    if name == "dp":
        plan = unamplified()
        noisy = type(plan)(
            **{
                **{f: getattr(plan, f) for f in plan.__dataclass_fields__},
                "noise_multiplier": 1.0,
            }
        )
        inner = torch.optim.SGD(made.model.parameters(), lr=RATE)
        made.optimizer = dp.DPOptimizer(inner, plan=noisy)
    else:
        made.optimizer.noise_multiplier = 1.0
    lr_scheduler.StepLR(made.optimizer, 1)
    before = made.weights()
    made.step()
    assert (made.weights() - before).abs().max() > 1, "there is no noise"


@probe("privacy", "torch", "a checkpoint knows what was spent")
def _(name):
    if name in ("torch", "copies"):
        return
    made, resumed = subject(name), subject(name)
    made.step()
    resumed.optimizer.load_state_dict(made.optimizer.state_dict())
    ledger = getattr(resumed.optimizer, "ledger", None)
    assert ledger is not None, "its accountant is not in the optimizer's state"
    assert ledger.steps == 1, f"{ledger.steps} steps"
