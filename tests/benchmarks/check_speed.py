"""Measure what checks add to training: ``python tests/benchmarks/check_speed.py``.

Most steps are not checked: one in 50 is looked at, of whose looks one in eight compares
gradients, and one pass in 128 is verified. So each kind of step is forced here, in turn
with steps that nothing checks, and its time is weighed by how often it comes. Figures
are medians of ratios of processor time on one thread. ``--write`` puts them into the page.
"""

import argparse
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from step_models import MODELS, Subject
from step_models_in_hand import IN_HAND

import dp
from dp.evidence import _schedule
from dp.per_sample import Verification


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "benchmarks.md"
SUBJECTS = {**IN_HAND, **{name: MODELS[name] for name in ("BERT", "LoRA")}}
CHOSEN = (
    "CNN of MNIST",
    "decoder of 6 layers",
    "MLP, 64",
    "MLP, 512",
    "WRN-16-4",
    "LoRA",
    "ViT of 6 layers",
    "30 tiny layers",
)
_GRADIENTS = _schedule._GRADIENTS
# Each kind of step, and in how many one comes.
KINDS = {
    "a look": _schedule.EVERY * _GRADIENTS / (_GRADIENTS - 1),
    "a look with gradients": _schedule.EVERY * _GRADIENTS,
    "the step after a look": _schedule.EVERY,
    "a verified pass": Verification().every,
}
_MARKS = "<!-- checks -->", "<!-- end of checks -->"
_WATCH = "dp.evidence._watch."


def optimizer_of(subject: Subject) -> dp.DPOptimizer:
    """Wrap SGD as its users do."""
    plan = dp.PrivacyPlan(
        sampling=dp.Unamplified(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=float(len(subject.y)),
        steps=1_000_000,
        target_delta=1e-6,
        neighboring_relation="zero_out",
    )
    trained = [p for p in subject.model.parameters() if p.requires_grad]
    return dp.DPOptimizer(torch.optim.SGD(trained, lr=1e-4), plan=plan)


def steps_of(subject: Subject) -> Callable[[str | None], float]:
    """Return what takes a step of one kind, and its processor time."""
    optimizer = optimizer_of(subject)

    def loss_fn(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return subject.losses(subject.model(x), y)

    def step(kind: str | None) -> float:
        looks = kind in ("a look", "a look with gradients")
        verifies = kind == "a verified pass"
        with (
            mock.patch(f"{_WATCH}is_due", lambda *_: looks),
            mock.patch(
                f"{_WATCH}asks_gradients", lambda *_: kind == "a look with gradients"
            ),
            mock.patch("secrets.randbelow", lambda _: 0 if verifies else 1),
        ):
            start = time.process_time()
            optimizer.zero_grad()
            optimizer.backward(loss_fn, (subject.x, subject.y))
            optimizer.step()
            return time.process_time() - start

    return step


def row_of(name: str, limit: float) -> list[str]:
    """Measure one model."""
    torch.manual_seed(0)
    step = steps_of(SUBJECTS[name]())
    for kind in ("a look with gradients", "a verified pass", *[None] * 4):
        step(kind)
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    end = time.perf_counter() + limit
    while time.perf_counter() < end or len(ratios["a look"]) < 5:
        for kind in random.sample([*KINDS], len(KINDS)):
            if kind == "the step after a look":
                step("a look")
            spent = step(kind)
            # The step after a look compares what is read beside the batch.
            step(None)
            ratios[kind].append(spent / step(None))
    extra = {kind: statistics.median(some) - 1 for kind, some in ratios.items()}
    share = sum(extra[kind] / every for kind, every in KINDS.items())
    cells = [f"{extra[kind]:.2f}" for kind in KINDS]
    return [name, *cells, f"{share:.2%}"]


def main() -> None:
    """Print a table, and put it into the page if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=CHOSEN)
    parser.add_argument("--seconds", type=float, default=20.0, help="a model, about")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kinds = [f"{kind}, one in {round(every)}" for kind, every in KINDS.items()]
    rows = [["model", *kinds, "together"], ["---"] * (len(kinds) + 2)]
    for name in options.models:
        rows.append(row_of(name, options.seconds))
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)  # noqa: T201
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    print(table)  # noqa: T201
    if options.write:
        before, _, rest = PAGE.read_text().partition(_MARKS[0])
        after = rest.partition(_MARKS[1])[2]
        PAGE.write_text(f"{before}{_MARKS[0]}\n\n{table}\n\n{_MARKS[1]}{after}")


if __name__ == "__main__":
    main()
