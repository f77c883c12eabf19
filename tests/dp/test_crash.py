"""That a crash between any two lines of a step loses no charge and shows no gradient."""

import ast
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch

import dp
from dp import PoissonSampling
from dp._mechanism.witness import ReleaseWitness
from dp.exceptions import PrivacyError
from dp.ledger import Ledger


pytestmark = pytest.mark.slow


SOURCE = str(Path(dp.__file__).parent)


class Crash(BaseException):
    """What nobody catches."""


@cache
def heads_of_blocks(path):
    """The lines of ``with`` statements, down to their bodies."""
    return {
        line
        for node in ast.walk(ast.parse(Path(path).read_text("utf-8")))
        if isinstance(node, ast.With)
        for line in range(node.lineno, node.body[0].lineno)
    }


class Saboteur:
    """Raise at the n-th line of dp that runs; count the lines if n is None.

    When a block ends, Python traces its ``with`` once more, before it is left. No
    signal is handled there (bpo-29988), so nothing is raised there: a lock would stay
    taken, and every later step would wait for it.
    """

    def __init__(self, at=None):
        self.at, self.num_lines, self.where = at, 0, None
        self.passed = []

    def __call__(self, frame, _event, _argument):
        path = frame.f_code.co_filename
        if not path.startswith(SOURCE):
            return None
        if frame.f_trace:  # A generator goes on.
            return frame.f_trace
        entered = set()

        def trace(frame, event, _argument):
            if event == "line" and frame.f_lineno not in entered:
                if frame.f_lineno in heads_of_blocks(path):
                    entered.add(frame.f_lineno)
                self.pass_line(f"{path}:{frame.f_lineno}")
            return trace

        return trace

    def pass_line(self, where):
        if self.num_lines == self.at:
            self.where = where
            raise Crash
        self.num_lines += 1
        self.passed.append(where)

    def moments(self):
        """When each line was passed first, and when last.

        Between the two a loop is in the same state but for how far it has come.
        """
        firsts = {where: at for at, where in reversed([*enumerate(self.passed)])}
        lasts = {where: at for at, where in enumerate(self.passed)}
        return sorted({*firsts.values(), *lasts.values()})

    def run(self, action):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            action()
        except Crash:
            return True
        finally:
            sys.settrace(before)
        return False


@pytest.fixture(autouse=True)
def _untraced():
    """Keep other tracers out, which would follow thousands of runs: that of coverage."""
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


@pytest.fixture
def at_rest(make_run):
    """A run whose next step is due, with what it must not show."""

    def make():
        everyone = PoissonSampling(sampling_probability=1.0)
        run = make_run(sampling=everyone, num_features=64)  # No multiple by chance.
        run.batch = next(iter(run.loader))
        run.before = weights(run)
        run.raw = torch.autograd.grad(
            run.losses(run.batch).sum(), list(run.model.parameters())
        )
        run.optimizer.backward(run.losses(run.batch))
        run.clipped = [
            s.clone() for s in run.optimizer.mechanism.pending.sums.of_parameters()
        ]
        return run

    return make


def weights(run):
    return torch.cat([p.detach().flatten().clone() for p in run.model.parameters()])


def is_sound(run):
    """Whether what can be seen from outside was charged, noised, and is readable."""
    steps = run.optimizer.ledger.steps
    copied = Ledger(run.optimizer.plan)
    copied.load_state_dict(run.optimizer.ledger.state_dict())
    shown = [
        (parameter.grad, raw, clipped)
        for parameter, raw, clipped in zip(
            run.model.parameters(), run.raw, run.clipped, strict=True
        )
        if parameter.grad is not None and parameter.grad.any()
    ]
    moved = not torch.equal(weights(run), run.before)
    return (
        steps in {0, 1}
        and copied.steps == steps
        and (steps == 1 or not (shown or moved))
        and not any(
            is_multiple(grad, r) or is_multiple(grad, c) for grad, r, c in shown
        )
    )


def is_multiple(gradient, raw):
    """Whether one is the other but for a factor: without noise."""
    ratio = (gradient / raw).flatten()
    return len(ratio) > 1 and bool((ratio - ratio[0]).abs().max() < 1e-3)


def goes_on(run):
    """Whether the next batch is released as ever, and charged once."""
    charged = run.optimizer.ledger.steps
    run.optimizer.zero_grad()
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    run.optimizer.step()
    return run.optimizer.ledger.steps == charged + 1


def test_a_crash_at_any_line_of_a_step_loses_no_charge(at_rest):
    """Every line of dp that a step runs, one after another."""
    run = at_rest()
    at_rest().optimizer.step()  # What is imported and cached once is, by now.
    counted = Saboteur()
    assert not counted.run(run.optimizer.step)
    assert counted.num_lines > 100

    outcomes = set()
    for line in counted.moments():
        run = at_rest()
        saboteur = Saboteur(at=line)
        if not saboteur.run(run.optimizer.step):
            continue  # Some noise takes more lines to round than other noise.
        assert is_sound(run), saboteur.where
        with pytest.raises(PrivacyError):  # What a step permits ends with it.
            run.optimizer.original_optimizer.step()
        assert goes_on(run), saboteur.where
        outcomes.add(run.optimizer.ledger.steps)
    assert outcomes == {1, 2}  # Crashes before the charge, and after it.


def test_a_crash_at_any_line_of_backward_leaves_no_half_sum(at_rest):
    """What was computed of the batch is forgotten or whole, never in between."""
    run = at_rest()
    counted = Saboteur()
    run.optimizer.zero_grad()
    batch = next(iter(run.loader))
    losses = run.losses(batch)
    assert not counted.run(lambda: run.optimizer.backward(losses))

    for line in counted.moments()[::3]:
        run = at_rest()
        run.optimizer.zero_grad()
        batch = next(iter(run.loader))
        losses = run.losses(batch)
        Saboteur(at=line).run(partial(run.optimizer.backward, losses))
        assert not any(
            p.grad is not None and p.grad.any() for p in run.model.parameters()
        )
        run.optimizer.zero_grad()
        run.optimizer.backward(run.losses(batch) * 0)
        pending = run.optimizer.mechanism.pending
        assert all(not s.any() for s in pending.sums.of_parameters()), line


def test_a_crash_at_any_line_of_loading_keeps_what_was_charged(make_run):
    """The ledger has its own charges, or those and the loaded ones."""
    other = make_run()
    other.train(2)
    state = other.optimizer.state_dict()
    counted = Saboteur()
    assert not counted.run(lambda: make_run().optimizer.load_state_dict(state))

    for line in counted.moments()[::3]:
        run = make_run()
        run.train(1)
        Saboteur(at=line).run(lambda run=run: run.optimizer.load_state_dict(state))
        assert run.optimizer.ledger.steps in {1, 3}, line


def test_the_check_sees_a_release_without_a_charge(at_rest, monkeypatch):
    """It can fail: a ledger that charges after the noise is found out."""
    monkeypatch.setattr(Ledger, "reserve", lambda *_args, **_numbers: None)
    monkeypatch.setattr(ReleaseWitness, "is_blind", True)  # Or it would notice first.
    run = at_rest()
    run.optimizer.step()

    assert not is_sound(run)


@pytest.mark.parametrize("kind", ["raw", "clipped"])
def test_the_check_sees_a_gradient_without_noise(at_rest, kind):
    """It can fail: neither raw gradients nor clipped sums may stand in ``p.grad``."""
    run = at_rest()
    run.optimizer.step()
    assert is_sound(run)
    for parameter, bare in zip(run.model.parameters(), getattr(run, kind), strict=True):
        parameter.grad = bare / 10

    assert not is_sound(run)
