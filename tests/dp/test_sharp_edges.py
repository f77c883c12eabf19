"""That what the page on sharp edges says is tested, and the tests that only it needs."""

import copy
import re
from pathlib import Path

import pytest
import torch

from dp import PoissonSampling


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/sharp-edges.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+)`", PAGE)))
ROWS = [
    line
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| what goes"))
]


@pytest.fixture(scope="module")
def tests():
    """Every name that a test has, as a function or as a case."""
    sources = [path.read_text("utf-8") for path in ROOT.glob("tests/dp/**/test_*.py")]
    return set(re.findall(r"^(?:def )?(test_\w+)", "\n".join(sources), re.MULTILINE))


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(tests, name):
    """A row cannot point at a test that was renamed or dropped."""
    assert name in tests


def test_every_row_names_a_test_and_a_severity():
    """What is said without either is a hope."""
    assert len(ROWS) > 40
    for row in ROWS:
        assert "`test_" in row, row
        severity = row.split("|")[2].strip(" *")
        assert severity in {"critical", "serious", "small", "utility"}, row


def released(run):
    """One step on gradients of zero: what is released is the noise."""
    run.optimizer.backward(run.losses(next(iter(run.loader))) * 0)
    run.optimizer.step()
    return run.model.weight.grad.clone()


def test_a_resumed_run_repeats_no_noise(make_run):
    """Nothing in a checkpoint or a seed brings back noise that was released."""
    torch.manual_seed(0)
    run = make_run()
    state = copy.deepcopy(run.optimizer.state_dict())
    first = [released(run) for _ in range(3)]
    torch.manual_seed(0)
    resumed = make_run()
    resumed.optimizer.load_state_dict(state)
    second = [released(resumed) for _ in range(3)]

    assert not any(torch.equal(a, b) for a in first for b in second)


def test_nothing_of_the_data_is_in_a_checkpoint_of_the_ledger(make_run):
    """Runs on other data, of another size, write the same ledger, ids apart."""
    ledgers = []
    for num_examples in (20, 21):
        run = make_run(
            num_examples=num_examples,
            sampling=PoissonSampling(sampling_probability=0.5),
        )
        run.train(3)
        (segment,) = run.optimizer.ledger.state_dict()["segments"].values()
        ledgers.append(segment)

    assert ledgers[0] == ledgers[1]
