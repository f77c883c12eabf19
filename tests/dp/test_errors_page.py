"""Each message on the page of errors is one that the code raises."""

import builtins
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import dp
from dp.cli import main


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
HEADINGS = re.findall(r"^### `(.+)`$", PAGE.read_text("utf-8"), re.MULTILINE)
TARGET = {"target_epsilon": 3.0, "target_delta": 1e-4, "max_grad_norm": 1.0}


class Run:
    """A private run of a linear model."""

    def __init__(self, *, steps=3, model=None):
        self.data = TensorDataset(torch.randn(30, 4), torch.randint(3, (30,)))
        self.plan = dp.plan_for(
            **TARGET,
            sampling_probability=0.5,
            steps=steps,
            expected_batch_size=15,
        )
        self.model = nn.Linear(4, 3) if model is None else model
        self.loader = self.plan.loader(self.data)
        self.optimizer = self.wrapped()

    def wrapped(self):
        return dp.DPOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.1),
            plan=self.plan,
            loader=self.loader,
        )

    def loss_fn(self, batch):
        return cross_entropy(self.model(batch[0]), batch[1], reduction="none")

    def train(self):
        for batch in self.loader:
            self.optimizer.backward(self.loss_fn, batch)
            self.optimizer.step()


def plain_backward():
    run = Run()
    run.loss_fn(next(iter(run.loader))).mean().backward()
    run.optimizer.step()


def two_backwards():
    run = Run()
    batch = next(iter(run.loader))
    run.optimizer.backward(run.loss_fn, batch)
    run.optimizer.backward(run.loss_fn, batch)


def half_a_batch():
    run = Run()
    batch = next(iter(run.loader))
    run.optimizer.backward(run.loss_fn, [part[:1] for part in batch])
    run.optimizer.step()


def a_second_step():
    run = Run()
    batch = next(iter(run.loader))
    for _ in range(2):
        run.optimizer.backward(run.loss_fn, batch)
        run.optimizer.step()


def batch_norm():
    run = Run(model=nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    run.train()


def a_spent_budget():
    run = Run(steps=1)
    run.train()
    run.train()


def the_same_rows():
    run = Run()
    run.train()
    other = Run()
    other.data = run.data
    other.loader = other.plan.loader(run.data)
    other.optimizer = other.wrapped()
    other.train()


def several_shapes():
    plan = dp.plan_for(
        **TARGET, sampling_probability=1.0, steps=1, expected_batch_size=3
    )
    next(iter(plan.loader([torch.zeros(n) for n in (1, 2, 3)])))


def the_same_example():
    row = torch.zeros(2)
    Run().plan.loader([row, row])


def columns():
    frame = SimpleNamespace(iloc=None)
    Run().plan.loader(frame)


def other_parameters():
    run = Run()
    run.optimizer.backward(Run().loss_fn, next(iter(run.loader)))


def prepared_before():
    ours = accelerator()
    model = nn.Linear(4, 3)
    ours.prepare(model, torch.optim.SGD(model.parameters()))
    private(ours, epochs=1)


def compiled_by_torch():
    from dp.integrations._trainer_arguments import check_arguments  # noqa: PLC0415

    harmless = SimpleNamespace(
        max_grad_norm=1.0,
        max_steps=1,
        dataloader_drop_last=False,
        train_sampling_strategy="random",
        auto_find_batch_size=False,
        ddp_broadcast_buffers=None,
        include_num_input_tokens_seen="no",
        neftune_noise_alpha=None,
        torch_compile=True,
    )
    check_arguments(harmless, Run().plan)


def private(trainer, **changes):
    numbers = {"epsilon": 3.0, "delta": 1e-4, "dataset_size": 30}
    return dp.private(trainer, **{**numbers, **changes})


def accelerator():
    from accelerate import Accelerator  # noqa: PLC0415 -- only where it is needed

    return Accelerator(cpu=True)


def an_unknown_column():
    private_accelerator = private(accelerator(), epochs=1, units="user")
    model = nn.Linear(4, 3)
    loader = DataLoader([{"x": row} for row in torch.zeros(30, 4)], batch_size=5)
    private_accelerator.prepare(model, torch.optim.SGD(model.parameters()), loader)


def packed_texts():
    pytest.importorskip("trl")
    from dp.integrations.private._trl import PrivateSFT  # noqa: PLC0415

    PrivateSFT.check(
        SimpleNamespace(
            aux_loss_enabled=False,
            args=SimpleNamespace(packing=True),
            padding_free=True,
        )
    )


def a_loss_of_a_batch():
    from transformers import Trainer  # noqa: PLC0415

    from dp.integrations._trainer_methods import check_methods  # noqa: PLC0415
    from dp.integrations.transformers import PrivateTrainer  # noqa: PLC0415

    class Mine(Trainer):
        def compute_loss(self, *args, **kwargs):
            raise NotImplementedError

    check_methods(Mine, PrivateTrainer)


def lightning(**changes):
    from dp.integrations.lightning import PrivacyCallback  # noqa: PLC0415

    trainer = SimpleNamespace(
        world_size=2,
        optimizers=[],
        callbacks=[],
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=True),
    )
    callback = PrivacyCallback()
    if changes:
        callback.on_train_start(trainer, None)
    callback.setup(trainer, None, "fit")


def a_checkpoint_without_optimizer():
    from transformers import TrainerState  # noqa: PLC0415

    from dp.integrations.transformers import PrivacyCallback  # noqa: PLC0415

    PrivacyCallback().on_train_begin(
        None, TrainerState(global_step=5), None, optimizer=Run().optimizer
    )


def without_numpy():
    with pytest.MonkeyPatch.context() as patch:
        hide_numpy(patch)
        for name in [n for n in sys.modules if n.startswith("dp.query")]:
            patch.delitem(sys.modules, name)
        dp.__getattr__("query")


def hide_numpy(patch, hidden=("numpy", "typer", "torch")):
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    patch.setattr(builtins, "__import__", importing)


CAUSES = {
    "step was called without gradients": plain_backward,
    "grad can be implicitly": lambda: Run().model(torch.zeros(2, 4)).backward(),
    "losses must be a floating": lambda: Run().optimizer.backward(torch.tensor(1.0)),
    "none of the optimizer's": other_parameters,
    "there is no private": lambda: private(accelerator(), epochs=1).certificate(),
    "dataset is a …, of which": columns,
    "dataset is a … of arrays": lambda: Run().plan.loader(
        (torch.zeros(3, 2), torch.zeros(3))
    ),
    "the plan claims amplification": lambda: Run().optimizer.attach(None),
    "torch_compile=True compiles": compiled_by_torch,
    "the Accelerator prepared": prepared_before,
    "more losses than the loader drew": two_backwards,
    "backward has not seen every example": half_a_batch,
    "this batch was already used": a_second_step,
    "the loss of an example changed": batch_norm,
    "the plan's budget is spent": a_spent_budget,
    "rows of this dataset were trained on": the_same_rows,
    "the examples of a batch have several": several_shapes,
    "plan.loader takes no": lambda: Run().plan.loader([1], shuffle=True),
    "PoissonLoader takes no": lambda: dp.PoissonLoader(
        [1], sampling_probability=1.0, steps=1, batch_size=3
    ),
    "rows … and … of the dataset": the_same_example,
    "units='…' names no column": an_unknown_column,
    "plan_for needs expected": lambda: dp.plan_for(**TARGET, steps=3),
    "epochs=… needs batch_size": lambda: dp.plan_for(**TARGET, epochs=3),
    "batch_size=… needs dataset": lambda: dp.plan_for(**TARGET, batch_size=3, steps=1),
    "compose takes certificates": lambda: dp.compose([1, 2]),
    "packing=True puts": packed_texts,
    "….compute_loss would not": a_loss_of_a_batch,
    "use_distributed_sampler=True": lightning,
    "no optimizer is private": lambda: lightning(start=True),
    "epochs=…: an Accelerator": lambda: private(accelerator()),
    "dp.private takes a Trainer": lambda: private(nn.Linear(1, 1)),
    "the checkpoint took": a_checkpoint_without_optimizer,
    "dp.… needs": without_numpy,
}


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_message_on_the_page_is_one_that_is_raised(heading):
    """By what the page says causes it; dots stand for values."""
    (cause,) = (cause for start, cause in CAUSES.items() if heading.startswith(start))
    pattern = re.escape(heading).replace("…", ".+")

    with pytest.raises((Exception,), match=f"^{pattern}"):  # Of any kind.
        cause()


def test_the_page_has_every_cause_that_is_tried():
    """None is left out."""
    assert len(HEADINGS) == len(CAUSES)


def test_an_error_in_our_own_code_is_not_taken_for_a_missing_extra(monkeypatch):
    """Only what the extra brings is told of."""
    monkeypatch.setitem(sys.modules, "dp.query", None)

    with pytest.raises(ModuleNotFoundError, match=r"import of dp\.query halted"):
        dp.__getattr__("query")


@pytest.mark.parametrize(
    ("hidden", "error", "told"),
    [
        (("typer",), SystemExit, "dp needs typer.*pip install 'forwarding"),
        (("pathlib",), ModuleNotFoundError, "No module named 'pathlib'"),
    ],
)
def test_the_command_line_says_which_extra_is_missing(monkeypatch, hidden, error, told):
    """In one line, and not by a traceback."""
    for name in [n for n in sys.modules if n.startswith("dp.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    hide_numpy(monkeypatch, hidden)

    with pytest.raises(error, match=told):
        main(["--help"])
