"""DPOptimizer under DeepSpeed: stage 0 trains, every other engine is refused by name.

The real engine is run where DeepSpeed is installed, or unpacked in the folder that
``DP_TEST_DEEPSPEED`` names: in the environment of the other tests it would be imported
by accelerate and transformers. What an engine does to an optimizer is tested anywhere.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from dp import PrivacyError, SamplingMismatchError, UnsupportedOperationError


WORKER = Path(__file__).with_name("deepspeed_engine.py")
ROOT = Path(__file__).parents[3]


def folder():
    """Where DeepSpeed is, or a skip."""
    given = os.environ.get("DP_TEST_DEEPSPEED")
    if given:
        return str(Path(given).resolve())
    found = importlib.util.find_spec("deepspeed")
    if found is None:
        pytest.skip("DeepSpeed is not installed, and DP_TEST_DEEPSPEED is not set")
    return str(Path(found.origin).parents[1])


def results_of(num_ranks):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(num_ranks),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), folder()],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    results = []
    for rank in ranks:
        out, errors = rank.communicate(timeout=240)
        assert rank.returncode == 0, errors[-3000:]
        (line,) = [x for x in out.splitlines() if x.startswith("RESULTS ")]
        results.append(json.loads(line.removeprefix("RESULTS ")))
    return results


@pytest.fixture(scope="module")
def seen():
    """What every scenario of one process came to."""
    (results,) = results_of(1)
    return results


def epsilon(steps):
    event = dp_accounting.PoissonSampledDpEvent(
        0.5, dp_accounting.GaussianDpEvent(10.0)
    )
    return PLDAccountant().compose(event, steps).get_epsilon(1e-5)


def assert_private(found, *, steps, rates):
    """Every step was noised as planned, charged once, and used the rate given."""
    assert found["error"] is None
    assert found["steps"] == steps
    # 650 coordinates: a spread 20 % off is beyond seven standard errors.
    assert found["spreads"] == pytest.approx([0.5] * len(rates), rel=0.2)
    assert found["rates"] == pytest.approx(rates, rel=1e-3)
    assert found["epsilon"] == pytest.approx(epsilon(steps), rel=1e-2)


@pytest.mark.parametrize("name", ["stage 0", "stage 0, autocast"])
def test_stage_0_trains_privately(seen, name):
    """The engine calls ``backward`` and ``step``, and both are ours."""
    assert_private(seen[name], steps=6, rates=[0.1] * 6)


def test_its_scheduler_drives_the_update(seen):
    """DeepSpeed writes the rate into ``param_groups``, and the update follows."""
    rates = seen["plain rates"]

    assert len(set(rates)) > 3
    assert_private(seen["stage 0, a scheduler"], steps=6, rates=rates)


@pytest.mark.parametrize("parts", [1, 2])
def test_accumulation_divides_once(seen, parts):
    """The update is that of the whole draw, however the engine divides the loss."""
    found = seen[f"in {parts} parts"]

    assert (found["error"], found["steps"]) == (None, 1)
    assert found["moved"] == pytest.approx(found["expected"], rel=1e-3, abs=1e-6)


def test_its_checkpoints_carry_the_ledger(seen):
    """Two steps before, two after: four are charged, and two were taken here."""
    found = seen["resumed"]

    assert found["loaded"]
    assert_private(found, steps=4, rates=[0.1] * 2)


def test_ranks_of_stage_0_train_as_one():
    """The same weights and the same epsilon as of one process, on both ranks."""
    first, second = (results["two ranks"] for results in results_of(2))

    assert_private(first, steps=6, rates=[0.1] * 6)
    assert first["moved"] == second["moved"]
    assert first["epsilon"] == second["epsilon"]


@pytest.mark.parametrize(
    "name",
    ["stage 0, bf16", "stage 1", "stage 1, bf16", "stage 2", "stage 2, offload"],
)
def test_engines_that_train_copies_are_refused_by_name(seen, name):
    """Before any step, so that nothing is spent and no weight moves."""
    found = seen[name]

    assert "Error: " in found["error"]
    assert "DeepSpeed's ZeRO stages 1 to 3 and its fp16 and bf16" in found["error"]
    assert (found["steps"], found["rates"]) == (0, [])
    assert max(map(abs, found["moved"])) < 2e-3  # As bfloat16 rounds a weight.


def test_stage_3_is_refused_by_name(seen):
    """It puts its parts in place of the parameters for the length of a step."""
    found = seen["stage 3"]

    assert found["error"].startswith("PrivacyError: the optimizer's trainable param")
    assert "DeepSpeed's ZeRO stages 1 to 3" in found["error"]
    assert (found["steps"], found["rates"]) == (0, [])


@pytest.fixture
def in_deepspeed(monkeypatch):
    """Let errors say what DeepSpeed does, as where it is imported."""
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))


def flattened(parameters):
    """A copy of all parameters in one vector, as ZeRO and half precision train."""
    flat = torch.cat([p.detach().float().flatten() for p in parameters])
    return flat.requires_grad_()


def by_backward(optimizer, losses):
    optimizer.backward(losses)


def by_private_loss(optimizer, losses):
    optimizer.private_loss(losses).backward()


@pytest.mark.usefixtures("in_deepspeed")
@pytest.mark.parametrize("give", [by_backward, by_private_loss])
def test_copies_in_place_of_parameters_are_refused(make_script, give):
    """What ZeRO stages 1 and 2 do: a step would be noise on a copy."""
    script = make_script()
    (group,) = script.optimizer.param_groups
    group["params"] = [flattened(group["params"])]
    losses = script.losses(next(iter(script.loader)))

    with pytest.raises(UnsupportedOperationError, match="ZeRO stages 1 to 3"):
        give(script.optimizer, losses)

    assert script.optimizer.mechanism.pending is None
    assert script.optimizer.ledger.steps == 0


@pytest.mark.usefixtures("in_deepspeed")
def test_raw_gradients_on_copies_are_never_used(make_script):
    """What ZeRO does if the loss was a plain one: its hooks fill the copy's gradient."""
    script = make_script()
    (group,) = script.optimizer.param_groups
    flat = flattened(group["params"])
    group["params"], before = [flat], flat.detach().clone()
    for _ in zip(script.loader, range(2), strict=False):
        flat.grad = torch.ones_like(flat)
        with pytest.raises(SamplingMismatchError, match="without gradients"):
            script.optimizer.step()

    assert torch.equal(flat, before)
    assert script.optimizer.ledger.steps == 0


@pytest.mark.usefixtures("in_deepspeed")
def test_copies_for_the_length_of_a_step_are_refused(make_script):
    """What ZeRO stage 3 does, with a step for each of its groups."""
    script = make_script()
    (group,) = script.optimizer.param_groups
    script.optimizer.backward(script.losses(next(iter(script.loader))))
    whole, group["params"] = group["params"], [flattened(group["params"])]

    with pytest.raises(PrivacyError, match="ZeRO stages 1 to 3"):
        script.optimizer.step()

    group["params"] = whole
    assert script.optimizer.ledger.steps == 0


@pytest.mark.usefixtures("in_deepspeed")
def test_a_step_that_sets_up_state_is_refused(make_script):
    """What the half-precision engines do, at a rate that is not 0."""
    script = make_script()
    (group,) = script.optimizer.param_groups
    group["params"] = [flattened(group["params"])]
    group["params"][0].grad = torch.zeros_like(group["params"][0])

    with pytest.raises(SamplingMismatchError, match="may step before any batch"):
        script.optimizer.step()

    assert script.optimizer.ledger.steps == 0


def test_losses_that_nothing_leads_to_are_refused(make_script):
    """As torch refuses them; the message is about what was given."""
    script = make_script()
    batch = next(iter(script.loader))
    with torch.no_grad():
        losses = script.losses(batch)

    with pytest.raises(UnsupportedOperationError, match="computed under no_grad"):
        script.optimizer.backward(losses)

    script.optimizer.backward(script.losses(batch))
    script.optimizer.step()
    assert script.optimizer.ledger.steps == 1
