"""Every name of torch's optimizers is in the table, and behaves as its row says."""

import inspect
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from dp import DPOptimizer
from dp.optimizer._surface import COMPOSED, FORWARDED, OWN, REFUSED
from dp.optimizer._transparent import TransparentOptimizer
from forwarding import forwarded_attributes


ROWS = {**FORWARDED, **OWN, **COMPOSED}
TORCHS_OWN = {name for name in vars(Optimizer) if name not in vars(object)}
# What any class has, and what Python gives every class that is written down.
LANGUAGE = {"__annotations__", "__dict__", "__doc__", "__module__", "__weakref__"}


def optimizers():
    for name in torch.optim.__all__:
        kind = getattr(torch.optim, name)
        if isinstance(kind, type) and kind is not Optimizer:
            yield kind([nn.Parameter(torch.zeros(2, 2))])


def unsorted(names):
    return sorted(set(names) - set(ROWS) - LANGUAGE)


def test_every_name_that_torch_defines_is_sorted():
    """Class attributes, redefined special methods, and what instances hold."""
    redefined = {n for n in vars(Optimizer) if n in vars(object)}
    instance = vars(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))

    assert unsorted(TORCHS_OWN | redefined | set(instance)) == []


def test_a_name_that_torch_adds_is_noticed():
    """The check above can fail."""
    assert unsorted([*vars(Optimizer), "register_new_hook"]) == ["register_new_hook"]


def test_what_a_class_of_torch_adds_is_reached_through_the_layer():
    """``share_memory``, ``_init_group`` and the like need no row of their own."""
    reached = set()
    for inner in optimizers():
        outer = TransparentOptimizer(inner)
        added = {n for n in dir(inner) if n not in ROWS and n[:2] != "__"}
        assert all(getattr(outer, n) == getattr(inner, n) for n in added)
        reached |= added

    assert {"share_memory", "_init_group", "_params"} <= reached


def test_a_name_has_one_row():
    """Forwarded, own and composed exclude each other."""
    assert len(ROWS) == len(FORWARDED) + len(OWN) + len(COMPOSED)
    assert all(ROWS.values())
    assert all(REFUSED.values())


def test_forwarded_rows_are_forwarded_and_nothing_else_is():
    """The table and the declarations in the class say the same."""
    declared = {
        name
        for name, spec in forwarded_attributes(TransparentOptimizer).items()
        if spec.kind == "data"
    }

    assert declared == {name for name in FORWARDED if name.isidentifier()}


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_composed_rows_are_written_here(name):
    """Each is defined by our class, not inherited from torch."""
    defined = inspect.getattr_static(TransparentOptimizer, name)

    assert defined is not inspect.getattr_static(Optimizer, name, None)


@pytest.mark.parametrize("name", sorted(n for n in OWN if n in TORCHS_OWN))
def test_own_rows_that_are_methods_are_torchs(name):
    """They act on this layer's own hooks, and have nothing to add."""
    static = inspect.getattr_static(DPOptimizer, name)

    assert static is inspect.getattr_static(Optimizer, name)


def test_own_rows_that_are_data_are_on_the_layer(make_run):
    """Torch's instance attributes exist on both, each with its own value."""
    run = make_run()
    for name in vars(run.inner):
        if name not in FORWARDED:
            assert name in vars(run.optimizer)
            assert name in OWN
            if isinstance(vars(run.inner)[name], dict):
                assert vars(run.optimizer)[name] is not vars(run.inner)[name]


def test_the_reference_page_has_the_tables_of_the_class():
    """It is written by a command, and nobody forgot to run it."""
    docs = Path(__file__).parents[2] / "docs"
    generator = runpy.run_path(str(docs / "optimizer_names.py"))
    page = generator["PAGE"].read_text()

    assert generator["rewritten"](page) == page
    prose, mark, _ = page.partition("<!-- tables -->\n")
    assert generator["rewritten"](f"{prose}{mark}an older table") == page
