"""What consumers of torch optimizers get from three wrappers, beside torch itself.

``python tests/benchmarks/compatibility.py --write`` runs every probe of
``compatibility_probes.py`` on each wrapper and writes the table into
docs/reference/compatibility.md. A probe asserts an effect; torch's own optimizer, as
the control, must pass all of them, or the probe is wrong and nothing is written.

Opacus must be installed. Consumers that are not are left out, and named. DeepSpeed may
be in the folder that ``DP_TEST_DEEPSPEED`` names, for accelerate imports what it finds.
"""

import argparse
import importlib.util
import logging
import os
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import dp  # noqa: E402 -- from this tree


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "compatibility.md"
START, END = "<!-- generated: start -->", "<!-- generated: end -->"
BATCH = 8
RATE = 0.1


@dataclass
class Subject:
    """A model and the optimizer under test, with no noise and a loose clipping norm.

    So its update must be torch's own, to the rounding.
    """

    name: str
    model: nn.Module
    optimizer: Any
    inner: Optimizer

    def loss(self, batch: Any, optimizer: Any = None) -> torch.Tensor:
        """Return the scalar whose ``backward()`` a training loop calls."""
        x, y = batch
        outputs = self.model(x)
        if self.name == "dp":
            losses = cross_entropy(outputs, y, reduction="none")
            return (optimizer or self.optimizer).private_loss(losses)
        return cross_entropy(outputs, y)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss(batch_of()).backward()
        self.optimizer.step()

    def weights(self) -> torch.Tensor:
        return torch.cat(
            [p.detach().flatten().clone() for p in self.model.parameters()]
        )


class ReferenceCopies(Optimizer):
    """A wrapper as Opacus' was before 1.5.2: it copies references when it is built."""

    def __init__(self, inner):
        self.original_optimizer = inner
        self.param_groups = inner.param_groups
        self.state = inner.state
        self.defaults = inner.defaults

    def step(self, closure=None):
        return self.original_optimizer.step(closure)

    def zero_grad(self, set_to_none=True):  # noqa: FBT002 -- torch's signature
        self.original_optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.original_optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.original_optimizer.load_state_dict(state_dict)


def batch_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, 4, generator=generator)
    return x, torch.randint(3, (BATCH,), generator=generator)


def unamplified(parts=1, steps=1000):
    return dp.PrivacyPlan(
        sampling=dp.Unamplified(backwards_per_step=parts),
        noise_multiplier=0.0,
        max_grad_norm=1e3,
        expected_batch_size=BATCH,
        steps=steps,
        target_delta=1e-5,
    )


def subject(name, kind=torch.optim.SGD, *, parts=1, **arguments):
    """Build what is under test around an optimizer of *kind*."""
    torch.manual_seed(0)
    model: nn.Module = nn.Linear(4, 3)
    inner = kind(model.parameters(), **{"lr": RATE, **arguments})
    if name == "torch":
        return Subject(name, model, inner, inner)
    if name == "copies":
        return Subject(name, model, ReferenceCopies(inner), inner)
    if name == "dp":
        private = dp.DPOptimizer(inner, plan=unamplified(parts))
        return Subject(name, model, private, inner)
    from opacus import GradSampleModule  # noqa: PLC0415 -- of this subject only
    from opacus.optimizers import DPOptimizer  # noqa: PLC0415

    wrapped = DPOptimizer(
        inner,
        noise_multiplier=0.0,
        max_grad_norm=1e3,
        expected_batch_size=BATCH // parts,  # Of one part, in Opacus' terms.
        loss_reduction="mean",
    )
    return Subject(name, GradSampleModule(model), wrapped, inner)


@contextmanager
def undamaged():
    """Undo what a failed copy does to a wrapper's class, or the next row pays for it."""
    from opacus.optimizers import DPOptimizer  # noqa: PLC0415 -- of one subject only

    steps = {cls: cls.step for cls in (ReferenceCopies, DPOptimizer)}
    try:
        yield
    finally:
        for cls, step in steps.items():
            cls.step = step


def outcome(probe, name):
    """Run one probe; return a table cell."""
    with warnings.catch_warnings(), undamaged():
        warnings.simplefilter("ignore")
        try:
            probe(name)
        except AssertionError as error:
            told = str(error).split("\n")[0]
            return f"**wrong**: {told}" if told else "**wrong**"
        except dp.PrivacyError as error:
            return f"refused: `{type(error).__name__}`"
        except Exception as error:  # noqa: BLE001 -- any failure is a result here
            return f"**raises** `{type(error).__name__}`"
    return "works"


def table():
    from compatibility_probes import PROBES  # noqa: PLC0415 -- they import this module

    rows, controls, missing = [], [], set()
    for consumer, package, behaviour, probe in PROBES:
        if not _is_installed(package):
            missing.add(consumer)
            continue
        if (control := outcome(probe, "torch")) != "works":
            controls.append(f"{consumer}, {behaviour}: {control}")
        cells = [
            # Copies claim no privacy, so there is nothing to hold against them.
            "n/a" if (consumer, name) == ("privacy", "copies") else outcome(probe, name)
            for name in ("dp", "opacus", "copies")
        ]
        rows.append((f"{consumer} {_version(package)}", behaviour, *cells))
        print(" | ".join(rows[-1]), flush=True)  # noqa: T201 -- progress
    if controls:
        raise SystemExit(
            "torch itself fails, so these probes are wrong:\n" + "\n".join(controls)
        )
    return rows, missing


@cache  # A probe may put a stub in its place.
def _is_installed(package):
    apart = os.environ.get("DP_TEST_DEEPSPEED")
    if package == "deepspeed" and apart:  # After accelerate's probes.
        sys.path.append(apart)
    return importlib.util.find_spec(package) is not None


def _version(package):
    names = {"ignite": "pytorch-ignite", "torch_ema": "torch-ema"}
    try:
        return version(names.get(package, package)).split("+")[0]
    except PackageNotFoundError:
        return ""


def page(rows, missing):
    """Return the generated part of the page."""
    columns = [[row[column] for row in rows] for column in (2, 3, 4)]
    counts = [f"{c.count('works')} of {len(c) - c.count('n/a')}" for c in columns]
    heads = ("`dp.DPOptimizer`", f"Opacus {_version('opacus')}", "reference copies")
    lines = ["| consumer | behaviour | " + " | ".join(heads) + " |", "|---" * 5 + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines.append("| **works** | | " + " | ".join(f"**{c}**" for c in counts) + " |")
    if missing:
        lines += [
            "",
            "Not installed where this was run: " + ", ".join(sorted(missing)) + ".",
        ]
    return "\n".join(lines)


def command(description, make_text, start, end):
    """Make a text and, if the command line says so, put it into its place on the page."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    text = make_text()
    if options.write:
        old = PAGE.read_text()
        head, tail = old.split(start)[0], old.split(end)[1]
        PAGE.write_text(f"{head}{start}\n\n{text}\n\n{end}{tail}")


if __name__ == "__main__":
    sys.modules["compatibility"] = sys.modules["__main__"]  # The probes' name for it.
    command(__doc__.split("\n")[0], lambda: page(*table()), START, END)
