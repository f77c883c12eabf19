"""That every check of an argument tells its name and its value."""

import math
from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import _checks
from dp._reports import shown


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (_checks.positive, [1, 1e-300, 5.5]),
        (_checks.non_negative, [0, 0.0, 3]),
        (_checks.probability, [1, 1e-9, 0.5]),
        (_checks.open_unit, [1e-12, 0.999]),
        (_checks.count, [1, 7]),
    ],
)
def test_good_values_pass_unchanged(check, good):
    """The value comes back, as a number."""
    assert [check(x=value) for value in good] == good


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (_checks.positive, [0, -1, math.inf, math.nan, "1", None, True]),
        (_checks.non_negative, [-1e-9, math.inf, math.nan, "1", None, False]),
        (_checks.probability, [0, 1.0001, math.nan, "1", None, True]),
        (_checks.open_unit, [0, 1, math.nan, "1", None]),
        (_checks.count, [0, -1, 1.0, "1", None, True]),
    ],
)
def test_bad_values_are_named(check, bad):
    """The name of the argument, what it must be, and what it was."""
    for value in bad:
        with pytest.raises(ValueError, match="x must be") as refused:
            check(x=value)
        assert str(refused.value).endswith(f"got {value!r}")


TARGET = {"target_epsilon": 3.0, "target_delta": 1e-4, "max_grad_norm": 1.0}
STEPS = {"sampling_probability": 0.2, "steps": 10, "expected_batch_size": 20}
EPOCHS = {"epochs": 2, "batch_size": 20, "dataset_size": 100}
INCOME = "4151617"
# What is passed by mistake where a number belongs, each with private values in its text.
DATA = {
    "rows": [{"income": 4151617.0}],
    "a pair": (4151617, "text"),
    "a tensor": torch.full((3,), 4151617.0),
    "an array": np.full(3, 4151617.0),
    "a batch": {"input_ids": torch.tensor([4151617])},
    "a text": f"I live in 4151617 {'and was born there' * 10}",
}


def a_loader(**arguments):
    rows = TensorDataset(torch.arange(50.0))
    return dp.plan_for(**TARGET, **STEPS).loader(rows, **arguments)


def an_optimizer(**arguments):
    plan = dp.plan_for(**TARGET, **STEPS)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return dp.DPOptimizer(sgd, **{"plan": plan, "loader": a_loader(), **arguments})


def backward(losses=None, **arguments):
    optimizer = an_optimizer()
    vector = torch.zeros(3, requires_grad=True)
    optimizer.backward(vector if losses is None else losses, **arguments)


CALLS = [
    *((dp.plan_for, {**TARGET, **STEPS}, name) for name in signature(dp.plan_for).parameters),
    *((dp.plan_for, {**TARGET, **EPOCHS}, name) for name in EPOCHS),
    *((dp.private, {"trainer": None, "epsilon": 3, "delta": 1e-4, "dataset_size": 9}, name) for name in signature(dp.private).parameters),
    *((a_loader, {}, name) for name in ("batch_size", "sampler", "labels", "units", "max_per_unit", "timeout")),
    *((an_optimizer, {}, name) for name in ("plan", "loader", "clipping", "continue_from", "public")),
    *((backward, {}, name) for name in ("losses", "units", "reduction")),
    (lambda **named: an_optimizer().step(*named.values()), {}, "closure"),
    *((lambda **named: setattr(an_optimizer(), *named.popitem()), {}, name) for name in ("noise_multiplier", "max_grad_norm")),
    *((dp.GaussianNoise, {}, name) for name in ("rng", "seed")),
    *((dp.SparseClipping, {"max_grad_norm": 1.0, "tables": (0,)}, name) for name in signature(dp.SparseClipping).parameters),
    (dp.BandedNoise, {}, "coefficients"),
    *((dp.split_batch, {"batch": torch.zeros(2)}, name) for name in ("max_examples",)),
    *((dp.PoissonLoader, {"dataset": [1], "sampling_probability": 0.5, "steps": 1}, name) for name in ("sampling_probability", "steps", "batch_size", "labels")),
    (dp.wrap_class, {}, "optimizer_class"),
]  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(("call", "arguments", "name"), CALLS)
def test_an_error_does_not_print_data_that_stand_where_an_option_belongs(
    call, arguments, name, kind
):
    """The dataset that is passed as its size ends in a log otherwise."""
    told = ""
    try:
        call(**{**arguments, name: DATA[kind]})
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is read
        told = f"{error}"

    assert INCOME not in told


@pytest.mark.parametrize("kind", DATA)
def test_of_data_only_the_type_is_told(kind):
    """And of what an option may be, the value."""
    assert shown(DATA[kind]) == f"a {type(DATA[kind]).__name__}"
    assert INCOME in f"{DATA[kind]!r}"
    assert [shown(x) for x in (1, "os", None, (), int)] == [
        *("1", "'os'", "None", "()"),
        "<class 'int'>",
    ]
