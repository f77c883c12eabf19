"""The commands that look at what a user wrote."""

from unittest import mock

import pytest

from dp import FlatClipping
from dp.cli import main


SETUPS = """
import torch

from torch.nn import functional as F


def loss_fn(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def sound():
    batch = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    return torch.nn.Linear(3, 2), loss_fn, batch


def mixed():
    model, _, batch = sound()
    return torch.nn.Sequential(model, torch.nn.BatchNorm1d(2)), loss_fn, batch


def too_few():
    return 1, 2


def no_model():
    return 1, 2, 3


number = 4


def train(model, dataset):
    import dp

    plan = dp.PrivacyPlan(
        sampling=dp.PoissonSampling(sampling_probability=0.2),
        noise_multiplier=2.0,
        max_grad_norm=1.0,
        expected_batch_size=100,
        steps=5,
        target_delta=1e-5,
    )
    loader = plan.loader(dataset)
    adam = torch.optim.Adam(model.parameters())
    optimizer = dp.DPOptimizer(adam, plan=plan, loader=loader)
    for batch in loader:
        optimizer.backward(model(batch))
        optimizer.step()


def train_without_noise(model, dataset):
    import dp

    plan = dp.PrivacyPlan(
        sampling=dp.PoissonSampling(sampling_probability=0.2),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=100,
        steps=5,
        target_delta=1e-5,
    )
    dp.audit.training(plan)(model, dataset)
"""


@pytest.fixture
def script(tmp_path):
    """A user's script with functions to point at."""
    path = tmp_path / "my_script.py"
    path.write_text(SETUPS)
    return path


@pytest.fixture
def call(capsys):
    """Run the command line; return its exit code, output and error output."""

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call


def test_check_passes_a_sound_model(call, script):
    """Exit code 0, and the report."""
    code, out, err = call("check", f"{script}:sound")

    assert (code, err) == (0, "")
    assert out == "dp.check: nothing found (4 examples compared)\n"


def test_check_refutes_a_model_that_mixes_examples(call, script):
    """Exit code 1, and what to do."""
    code, out, _ = call("check", f"{script}:mixed")

    assert code == 1
    assert "examples are mixed" in out
    assert "by GroupNorm" in out


def test_a_function_may_be_named_by_its_module(call, script, monkeypatch):
    """As for ``python -m``: found from the folder one stands in."""
    script.rename(script.with_name("my_module_of_setups.py"))
    monkeypatch.chdir(script.parent)

    assert call("check", "my_module_of_setups:sound")[0] == 0


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("{script}", "write script.py:function"),
        ("{script}:", "write script.py:function"),
        ("{script}x.py:f", "there is no file"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("{script}:missing", "has no function 'missing'"),
        ("{script}:number", "has no function 'number'"),
        ("{script}:too_few", "must return (model, loss_fn, batch)"),
        ("{script}:no_model", "must be a torch.nn.Module, got a int"),
    ],
)
def test_a_bad_target_is_one_line(call, script, target, told):
    """What is wrong, and what to write instead."""
    code, out, err = call("check", target.format(script=script))

    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_an_import_that_fails_inside_a_users_module_is_not_hidden(script, monkeypatch):
    """The module exists; what it lacks is the user's to see."""
    script.with_name("my_broken_module.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(script.parent)

    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        main(["check", "my_broken_module:f"])


FEW = ("--records", "1000")


@pytest.mark.slow
def test_audit_tests_a_users_function_and_leaves_files(call, script, tmp_path):
    """Exit code 0, the two epsilons, and a report with a picture."""
    report = tmp_path / "report"
    code, out, err = call("audit", f"{script}:train", *FEW, "--report", report)

    assert (code, err) == (0, "")
    assert "empirical >= " in out
    assert "Everything holds." in out
    assert {p.name for p in report.iterdir()} == {"audit.json", "audit.txt", "roc.png"}


@pytest.mark.slow
def test_audit_refutes_a_broken_build_of_dps_own_loop(call, tmp_path):
    """Exit code 1. The replay of a huge record sees it for certain, whatever is drawn."""
    right = FlatClipping.factors
    with mock.patch.object(FlatClipping, "factors", lambda *args: 1.5 * right(*args)):
        code, out, _ = call(
            "audit", *FEW, "--steps", "5", "--report", tmp_path / "report"
        )

    assert code == 1
    assert "It does NOT hold." in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--records", "10"), "--records must be >= 1000, got 10"),
        (("--noise-multiplier", "0"), "--noise-multiplier must be > 0"),
        (("--steps", "0"), "--steps must be"),
        (("{script}:train_without_noise", *FEW), "noise_multiplier is 0"),
        (("{script}:too_few",), "too_few() takes 0 positional arguments"),
        (("{script}:nothing",), "has no function 'nothing'"),
    ],
)
def test_what_cannot_be_audited_is_one_line(call, script, tmp_path, arguments, told):
    """What is wrong with an option, or with the function."""
    arguments = [argument.format(script=script) for argument in arguments]
    code, _, err = call("audit", *arguments, "--report", tmp_path / "report")

    assert code == 2
    assert told in err
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_written_stops_before_the_audit(call, tmp_path):
    """Nobody waits a minute to read that."""
    (tmp_path / "file").touch()

    code, out, err = call("audit", "--report", tmp_path / "file")

    assert (code, out) == (2, "")
    assert "cannot be written to" in err
