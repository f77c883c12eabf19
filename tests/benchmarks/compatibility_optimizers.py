"""Which optimizers of other packages make the same update inside a private optimizer.

``python tests/benchmarks/compatibility_optimizers.py --write`` takes three steps with
every optimizer class that it finds in PACKAGES, bare and inside a ``DPOptimizer`` without
noise and with a loose clipping norm, then saves the state, loads it and goes on. It
writes a table into docs/reference/compatibility.md. Packages that are not installed are
left out, and named.

The gradients of the two differ by rounding, which some optimizers enlarge, as by a sign
or an eigenvector. So a third run has its gradients changed by one part in ten million: an
optimizer that such a change moves as far has no update to compare.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import torch  # noqa: E402 -- after the path
from compatibility import _version, batch_of, command, unamplified  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torch.optim import Optimizer  # noqa: E402

import dp  # noqa: E402


START, END = "<!-- optimizers: start -->", "<!-- optimizers: end -->"
PACKAGES = {  # How it is imported: how it is installed.
    "torch.optim": "torch",
    "pytorch_optimizer": "pytorch-optimizer",
    "torch_optimizer": "torch-optimizer",
    "bitsandbytes.optim": "bitsandbytes",
    "torchao.optim": "torchao",
    "schedulefree": "schedulefree",
    "dadaptation": "dadaptation",
    "prodigyopt": "prodigyopt",
    "lion_pytorch": "lion-pytorch",
    "came_pytorch": "came-pytorch",
    "galore_torch": "galore-torch",
    "apollo_torch": "apollo-torch",
}
STEPS = 3
PERTURBED = 1e-7
BARE, PRIVATE, MOVED = "bare", "private", "moved"


@dataclass
class Counts:
    """What became of the optimizers of one package."""

    same: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unstable: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


def classes(module):
    """Yield the optimizers that *module* names."""
    for name, kind in sorted(vars(module).items()):
        is_class = inspect.isclass(kind) and issubclass(kind, Optimizer)
        if is_class and kind is not Optimizer:
            yield name, kind


def weights_after(kind, way, options):
    """Return the weights after some steps, a checkpoint, and as many steps again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    inner = kind([*model.parameters()], **options)
    optimizer = dp.DPOptimizer(inner, plan=unamplified()) if way == PRIVATE else inner
    with contextlib.suppress(AttributeError, TypeError):
        optimizer.train()  # Schedule-free ones have modes.
    _steps(model, optimizer, way)
    if way == PRIVATE or not _state_is_lost(optimizer):
        _through_file(optimizer)
    _steps(model, optimizer, way)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _steps(model, optimizer, way):
    torch.manual_seed(1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        x, y = batch_of()
        losses = cross_entropy(model(x), y, reduction="none")
        if way == PRIVATE:
            losses = optimizer.private_loss(losses)
        losses.mean().backward()
        if way == MOVED:
            for p in model.parameters():
                change = torch.linspace(-1, 1, p.numel()).view_as(p)
                p.grad *= 1 + PERTURBED * change
        optimizer.step()


def _through_file(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=False))


def _state_is_lost(optimizer):
    """Whether the bare optimizer cannot load its own state."""
    try:
        _through_file(optimizer)
    except Exception:  # noqa: BLE001 -- of another package, and any
        return True
    return False


def judge(name, kind, counts):
    """Put one optimizer where it belongs."""
    for options in ({}, {"lr": 0.01}):
        with contextlib.suppress(Exception):
            bare = weights_after(kind, BARE, options)
            break
    else:
        counts.not_run.append(name)
        return
    try:
        private = weights_after(kind, PRIVATE, options)
    except dp.PrivacyError:
        counts.refused.append(name)
        return
    except Exception as error:  # noqa: BLE001 -- a result
        counts.differ.append(f"{name} (`{type(error).__name__}`)")
        return
    distance = (private - bare).abs().max()
    if torch.allclose(private, bare, rtol=1e-3, atol=1e-5):
        counts.same.append(name)
    elif (weights_after(kind, MOVED, options) - bare).abs().max() > distance / 10:
        counts.unstable.append(name)
    else:
        counts.differ.append(name)


def rows():
    """Yield a row for each package that is installed."""
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module.split(".")[0]) is None:
            yield package, None
            continue
        counts = Counts()
        for name, kind in classes(importlib.import_module(module)):
            judge(name, kind, counts)
        print(package, counts, flush=True)  # noqa: T201 -- progress
        yield package, counts


def page(found):
    """Return the generated part of the page."""
    lines = [
        "| package | same update | rounding decides | other update | refused | need more |",
        "|---" * 6 + "|",
    ]
    total = Counts()
    for package, counts in found:
        if counts is None:
            continue
        cells = [
            str(len(counts.same)),
            ", ".join(counts.unstable),
            ", ".join(counts.differ),
            ", ".join(counts.refused),
            str(len(counts.not_run)),
        ]
        lines.append(f"| {package} {_version(package)} | {' | '.join(cells)} |")
        total.same += counts.same
    lines.append(f"| **together** | **{len(total.same)}** | | | | |")
    if missing := [package for package, counts in found if counts is None]:
        lines += ["", f"Not installed where this was run: {', '.join(missing)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    command(__doc__.split("\n")[0], lambda: page([*rows()]), START, END)
