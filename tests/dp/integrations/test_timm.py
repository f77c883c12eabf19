"""DPOptimizer in timm's schedulers, its Lookahead and its NativeScaler.

timm imports torchvision, which need not fit this torch, so its modules are loaded one
by one: the code is timm's own. It is installed without its dependencies.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


found = importlib.util.find_spec("timm")
if found is None:
    pytest.skip("timm is not installed", allow_module_level=True)
ROOT = Path(found.origin).parent


@pytest.fixture(scope="module")
def timm():
    """Return a loader of timm's modules that runs no package's ``__init__``."""
    before = dict(sys.modules)
    for name in ("timm", "timm.optim", "timm.utils"):
        package = ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    yield lambda name: importlib.import_module(f"timm.{name}")
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] == "timm":
            del sys.modules[name]


def test_its_schedulers_drive_the_update(make_script, timm):
    """They write to ``param_groups`` of what they were given, at every step."""
    script = make_script()
    scheduler = timm("scheduler").CosineLRScheduler(
        script.optimizer, t_initial=6, warmup_t=2, warmup_lr_init=0.02
    )
    rates = []
    for number, batch in enumerate(script.loader):
        scheduler.step(number)
        rates.append(script.inner_rate())
        script.optimizer.backward(script.losses(batch))
        script.optimizer.step()

    assert len(set(rates)) == 6
    script.assert_private(steps=6, rates=rates)


def test_lookahead_leads_to_the_private_step(make_script, timm):
    """It copies ``param_groups`` and calls ``step`` of what it wraps: that is ours.

    What it writes after that, within its own step, is a part of the update.
    """
    script = make_script()
    optimizer = timm("optim.lookahead").Lookahead(script.optimizer, alpha=0.5, k=2)
    start = script.weights()

    for batch in script.loader:
        optimizer.zero_grad()
        script.optimizer.private_loss(script.losses(batch)).backward()
        optimizer.step()

    script.assert_private(steps=6, rates=[0.1] * 6)
    assumptions = " ".join(script.optimizer.certificate().assumptions)
    assert "written to between steps" not in assumptions
    slow = torch.cat(
        [
            script.optimizer.state[p]["lookahead_slow_buff"].flatten()
            for p in script.model.parameters()
        ]
    )
    torch.testing.assert_close(script.weights(), slow)
    assert not torch.equal(slow, start)


def test_its_scaler_changes_no_step(make_script, timm):
    """NativeScaler scales, unscales and steps; noise and rate are as planned."""
    script = make_script()
    scaler = timm("utils.cuda").NativeScaler("cpu")

    for batch in script.loader:
        script.optimizer.zero_grad()
        scaler(
            script.optimizer.private_loss(script.losses(batch)),
            script.optimizer,
            parameters=script.model.parameters(),
        )

    script.assert_private(steps=6, rates=[0.1] * 6)
