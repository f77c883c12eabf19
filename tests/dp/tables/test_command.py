"""The command on a user's own table: what it leaves, what it says, and what it never says."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import dp
from dp._mechanism.mechanism import Mechanism
from dp.cli._declared import Declarations
from dp.cli._errors import InputError
from dp.cli._read import Layout, read_csv
from dp.cli._tabular import CsvOptions, open_csv
from dp.tables import Parsing


def two_classes(num_rows=60):
    """Rows of a table that a linear model separates."""
    rng = np.random.default_rng(0)
    for i in range(num_rows):
        x, y = rng.normal(2 * (i % 2) - 1, 0.2, 2)
        yield f"{x:.4f},{y:.4f},{['no', 'yes'][i % 2]}"


ROWS = tuple(two_classes())
HEADER = "x,y,class"


@pytest.fixture
def train(call, tmp_path):
    """Train on a file; return the exit code, output, error output and report."""

    def train(path, *options, target="class"):
        report = tmp_path / "report"
        arguments = ("--data", path, "--target", target, "--report", report)
        return (*call("train", *arguments, *options), report)

    return train


def scores_of(report):
    return json.loads((report / "scores.json").read_text())


def certificate_of(report):
    return dp.Certificate.from_json((report / "certificate.json").read_text())


@pytest.mark.slow
def test_a_table_is_trained_on_without_being_told_its_ranges(train, csv):
    """Scales differ a million times; epsilon covers finding them, too."""
    lines = []
    for row in two_classes(900):
        x, y, name = row.split(",")
        lines.append(f"{float(x) * 1e-3 + 5:.7f},{float(y) * 1e3:.2f},{name}")
    code, out, _err, report = train(csv(HEADER, *lines))
    certificate = certificate_of(report)

    assert code == 0
    assert scores_of(report)["private"]["score"] > 0.9
    assert "always the commonest class" in out
    assert "WARNING" not in out
    assert ">target 3</text>" in (report / "index.html").read_text("utf-8")
    assert 0.9995 * 3 <= certificate.epsilon <= 3
    assert certificate.delta == 1e-5
    assert certificate.neighboring_relation == "zero_out"
    assert next(run.released for run in certificate.runs).startswith("a histogram")
    assert certificate.private_data_touches is None
    assert dp.verify(report / "certificate.json", quick=True).ok
    assert "(720)" in " ".join(certificate.assumptions)


@pytest.mark.slow
def test_each_release_is_charged_for_the_noise_that_it_gets(train, csv, monkeypatch):
    """What the noise stage was asked for, release by release, is what is certified."""
    asked = []
    add = dp.GaussianNoise.add_

    def recorded(self, sums, *, stddev):
        asked.append(stddev)
        return add(self, sums, stddev=stddev)

    monkeypatch.setattr(dp.GaussianNoise, "add_", recorded)
    *_, report = train(csv(HEADER, *two_classes(400)), "--steps", 5)
    charged = [
        charge.noise_multiplier * charge.max_grad_norm
        for charge in certificate_of(report).charges
        for _ in range(charge.count)
    ]

    assert asked == charged
    assert len(asked) == 7


@pytest.mark.slow
def test_a_useless_model_is_said_to_be_useless(train, csv):
    """First of all, and without failing; the twin shows whether noise is at fault."""
    rng = np.random.default_rng(1)
    rows = [
        f"{x:.3f},{name}" for x, name in zip(rng.random(100), "ab" * 50, strict=True)
    ]
    code, out, _err, report = train(csv("x,class", *rows), "--compare", "--steps", 5)
    certificate = certificate_of(report)
    shown = " ".join(out.split())

    assert code == 0
    assert "WARNING: the private model is no better than always naming" in shown
    assert "The model without privacy is no better either" in shown
    assert shown.index("WARNING") < shown.index("test accuracy")
    assert scores_of(report)["not_private"]["seconds"] > 0
    assert "without privacy" in certificate.private_data_touches[0]


@pytest.mark.slow
def test_what_is_not_asked_for_is_not_trained(train, csv, monkeypatch):
    """No model without privacy, unless with --compare."""
    monkeypatch.setattr("dp.cli._training.train_openly", None)
    short = ("--steps", 2, "--lr", 0.5)
    code, out, _err, report = train(csv(HEADER, *ROWS), *short)

    assert code == 0
    assert "not private" not in out
    assert scores_of(report)["not_private"] is None


@pytest.mark.slow
def test_a_number_is_predicted(train, csv, call, tmp_path):
    """In its own unit, beside the mean; where it is missing, a row has no part."""
    rng = np.random.default_rng(0)
    x = rng.normal(50, 10, 900)
    rows = [f"{a:.2f},{1000 + 30 * a + rng.normal():.2f}" for a in x]
    path = csv("x,price", *rows, *["50.0,"] * 30)
    code, out, _err, report = train(path, target="price")
    private = scores_of(report)["private"]
    predicted = tmp_path / "predicted.csv"
    call("predict", report / "model.pt", path, "--out", predicted)
    prices = pd.read_csv(predicted)["price"]

    assert code == 0
    assert "RMSE" in out
    assert private["score"] < 0.6 * private["baseline"]
    assert 250 < private["baseline"] < 350
    assert len(prices) == 930
    assert 2300 < prices.mean() < 2700


@pytest.mark.slow
def test_a_useless_regression_is_said_to_be_useless(train, csv):
    """By the mean, which knows nothing; a declared range of the target costs nothing."""
    rng = np.random.default_rng(1)
    rows = [f"{a:.3f},{b:.3f}" for a, b in rng.random((60, 2))]
    ranges = csv("column,low,high", "y,0,1", "x,0,1", name="ranges.csv")
    _code, out, _err, report = train(
        *(csv("x,y", *rows), "--ranges", ranges, "--steps", 2, "--epsilon", 0.5),
        target="y",
    )

    assert "no better than always naming the mean" in " ".join(out.split())
    assert len(certificate_of(report).runs) == 1


@pytest.mark.slow
def test_a_model_loads_in_plain_torch(train, csv):
    """Weights that torch reads without this package, and fit a module of torch."""
    *_, report = train(csv(HEADER, *ROWS), "--steps", 2, "--model", "mlp")
    body = torch.load(report / "model.pt", weights_only=True)
    model = torch.nn.Sequential(
        torch.nn.Linear(body["state_dict"]["0.weight"].shape[1], 32),
        torch.nn.Tanh(),
        torch.nn.Linear(32, 2),
    )

    model.load_state_dict(body["state_dict"])
    assert body["classes"] == ["no", "yes"]


@pytest.mark.slow
def test_predictions_are_those_that_were_scored(train, csv, call, tmp_path):
    """The saved model is the private one, with its features made the same way."""
    path = csv(HEADER, *two_classes(400))
    *_, report = train(path)
    predicted = tmp_path / "predicted.csv"
    code, out, _err = call("predict", report / "model.pt", path, "--out", predicted)
    frame = pd.read_csv(predicted)
    table = open_csv(path, CsvOptions(target="class"), known="")
    names = np.array(table.classes)[table.answers[table.test_rows]]
    share = float(np.mean(frame["class"].to_numpy()[table.test_rows] == names))

    assert code == 0
    assert "400 predictions are in" in out
    assert share == scores_of(report)["private"]["score"]
    assert frame["probability"].between(0.5, 1).all()


def test_files_are_predicted_as_they_were_trained_on(train, csv, call, tmp_path):
    """Their separator, encoding and decimals are the model's, unless one says so."""
    rows = [row.replace(".", "*").replace(",", ";").replace("*", ",") for row in ROWS]
    path = csv(HEADER.replace(",", ";"), *rows)
    path.write_bytes(path.read_text("utf-8").replace("x;", "größe;").encode("latin-1"))
    written = ("--sep", ";", "--decimal", ",", "--encoding", "latin-1")
    *_, report = train(path, *written, "--steps", 2)
    tabs = tmp_path / "tabs.csv"
    tabs.write_text(path.read_text("latin-1").replace(";", "\t"), "utf-8")
    model, out = report / "model.pt", tmp_path / "predicted.csv"
    predicted = []
    for arguments in [(path,), (tabs, "--sep", "\\t", "--encoding", "utf-8")]:
        code, _out, err = call("predict", model, *arguments, "--out", out)
        assert (code, err) == (0, "")
        predicted.append(out.read_text("utf-8"))

    assert predicted[0] == predicted[1]
    assert len(predicted[0].splitlines()) == len(ROWS) + 1


@pytest.mark.slow
def test_what_cannot_be_predicted_is_one_line(call, train, csv, tmp_path):
    """No model, a model of images, other columns, or nowhere to write."""
    path = csv(HEADER, *ROWS)
    *_, report = train(path, "--steps", 2)
    images = tmp_path / "images.pt"
    torch.save({"format": "forwarding-dp-model/1", "state_dict": {}}, images)
    foreign = tmp_path / "foreign.pt"
    torch.save([1], foreign)
    other = csv("x", "1", name="other.csv")
    for arguments, told in [
        ((tmp_path / "none.pt", path), "there is no file"),
        ((path, path), "is no model that torch can load"),
        ((report, path), "is a folder; pass"),
        ((foreign, path), "is no model that `dp train` left"),
        ((images, path), "was trained on images"),
        (
            (report / "model.pt", other),
            'lacks columns that the model was trained on: "y"',
        ),
        (
            (report / "model.pt", path, "--out", tmp_path / "no/x.csv"),
            "cannot be written",
        ),
    ]:
        code, _out, err = call("predict", *arguments)

        assert code == 2
        assert told in err
        assert err.count("\n") == 1


@pytest.mark.slow
def test_all_rows_of_a_user_are_protected_together(train, csv, monkeypatch):
    """Users are held out, measured by one row and clipped as one."""
    rows = [f"{row},user {i % 45}" for i, row in enumerate(two_classes(450))]
    seen = []
    accumulate = Mechanism.accumulate

    def recorded(self, losses, *arguments, **options):
        seen.append(len(losses))
        return accumulate(self, losses, *arguments, **options)

    monkeypatch.setattr(Mechanism, "accumulate", recorded)
    path = csv(f"{HEADER},user", *rows)
    *_, report = train(path, "--unit-column", "user", "--steps", 2)
    certificate = certificate_of(report)

    assert seen == [360] * 2
    assert certificate.unit_of_privacy == "one value of user"
    assert {run.plan.unit_of_privacy for run in certificate.runs} == {
        "one value of user"
    }
    assert certificate.runs[-1].plan.expected_batch_size == 36
    (steps,) = certificate.runs[-1].charges
    assert steps.sampling_probability == 1


@pytest.mark.slow
def test_users_are_drawn_whole(train, csv):
    """With smaller batches, by the loader; the twin draws the same way."""
    rows = [f"{row},user {i % 45}" for i, row in enumerate(two_classes(450))]
    code, _out, _err, report = train(
        *(csv(f"{HEADER},user", *rows), "--unit-column", "user", "--steps", 2),
        *("--batch-size", 9, "--compare", "--delta", "1e-4"),
    )
    (steps,) = certificate_of(report).runs[-1].charges

    assert code == 0
    assert steps.sampling_probability == 0.25
    assert certificate_of(report).delta == 1e-4


def test_one_row_a_user_is_measured(csv):
    """The first in the file, of the users that are trained on."""
    path = csv("x,user,class", *(f"{i},{i // 3},{'ab'[i % 2]}" for i in range(90)))
    options = CsvOptions(target="class", unit_column="user")
    table = open_csv(path, options, known="")
    rows = table._one_row_a_unit()

    assert len(rows) == table.num_units == 24
    assert all(rows % 3 == 0)
    assert not set(rows // 3) & set(table.test_rows // 3)


@pytest.mark.slow
def test_no_rows_need_be_held_out(train, csv):
    """Then all are protected, and no score is measured."""
    code, out, _err, report = train(csv(HEADER, *ROWS), "--hold-out", 0, "--steps", 3)

    assert code == 0
    assert "no score was measured" in out
    assert "WARNING" not in out
    assert set(scores_of(report)["private"]) == {"seconds"}
    assert certificate_of(report).runs[-1].plan.expected_batch_size == 60


@pytest.mark.slow
def test_an_interrupt_leaves_the_mean_so_far(train, csv, monkeypatch):
    """A run that is broken off is certified and saved; so is one before the mean."""
    step, taken = dp.DPOptimizer.step, []

    def interrupted(self, closure=None):
        if len(taken) == 6:
            raise KeyboardInterrupt
        taken.append(step(self, closure))

    monkeypatch.setattr(dp.DPOptimizer, "step", interrupted)
    code, _out, _err, report = train(csv(HEADER, *ROWS), "--steps", 100)
    certificate = certificate_of(report)

    assert code == 0
    assert certificate.runs[-1].steps == 6
    assert certificate.epsilon_of_steps_taken < 2.9 < certificate.epsilon <= 3
    assert (report / "model.pt").exists()


@pytest.mark.slow
def test_a_group_of_rows_is_protected_together(train, csv):
    """Statistics and training alike, at the epsilon that was asked for."""
    _code, _out, _err, report = train(
        csv(HEADER, *two_classes(300)), "--group-size", 2, "--steps", 3
    )
    certificate = certificate_of(report)

    assert {run.plan.group_size for run in certificate.runs} == {2}
    assert 0.999 * 3 <= certificate.epsilon <= 3


@pytest.mark.slow
def test_a_run_that_can_be_repeated_is_not_private(train, csv):
    """The same weights twice, and no guarantee."""
    path = csv(HEADER, *two_classes(100))
    weights = []
    for _ in range(2):
        *_, report = train(path, "--debug-seed", 7, "--steps", 3)
        body = torch.load(report / "model.pt", weights_only=True)
        weights.append(body["state_dict"]["weight"])

    assert torch.equal(*weights)
    assert not certificate_of(report).is_private


@pytest.mark.slow
def test_an_imbalanced_table_has_a_balanced_score(train, csv):
    """Accuracy alone flatters a model that always names the commonest class."""
    rows = [f"{i % 7},{'rare' if i % 12 == 0 else 'common'}" for i in range(300)]
    _code, out, _err, _report = train(csv("x,class", *rows), "--steps", 2)

    assert "balanced accuracy" in " ".join(out.split())


@pytest.mark.slow
def test_columns_without_a_frequent_value_are_named(train, csv):
    """Names and ids: the column is public, and no value of it is said."""
    rows = [f"{row},Person{i:05}" for i, row in enumerate(two_classes(300))]
    _code, out, _err, report = train(csv(f"{HEADER},name", *rows), "--steps", 2)
    left = "".join(p.read_text("latin-1") for p in report.iterdir())

    assert "nothing stands out from the noise" in " ".join(out.split())
    assert "Person" not in out + left


def test_columns_of_one_magnitude_are_named(train, csv):
    """Dates of one year, and numbers far from zero; not those whose range is public."""
    days = [f"2023-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(400)]
    rows = [
        f"{row},{day},{1500 + i},{1500 + i}"
        for i, (row, day) in enumerate(zip(two_classes(400), days, strict=True))
    ]
    ranges = csv("column,low,high", "known,1000,2000", name="ranges.csv")
    _code, out, _err, _report = train(
        csv(f"{HEADER},day,near,known", *rows),
        *("--steps", 2, "--ranges", ranges, "--debug-seed", 3),
    )

    assert (
        "all of one magnitude, as recent dates and years are: day, near."
        in " ".join(out.split())
    )


@pytest.mark.slow
def test_delta_follows_from_the_public_number_of_rows(train, csv):
    """A power of ten, at most a tenth of one over the rows, and at most 1e-5."""
    rows = [f"{i % 9},{'ab'[i % 2]}" for i in range(30_000)]
    *_, report = train(csv("x,class", *rows), "--steps", 1)

    assert certificate_of(report).delta == pytest.approx(1e-6)


# Reading


def opened(path, target="class", **options):
    return open_csv(path, CsvOptions(target=target, **options), known="")


def test_one_row_does_not_change_how_others_are_read(csv):
    """A column of numbers stays one when a single value is no number."""
    numbers = [f"{i}.{i}e{i % 5}" for i in range(1, 31)]
    rows = [f"{x},{'ab'[i % 2]}" for i, x in enumerate(numbers)]
    quick = opened(csv("x,class", *rows, "7,a")).columns["x"]
    for odd in ("PhD", "True", "inf", "1e999", "", "2001-01-01"):
        slow = opened(csv("x,class", *rows, f"{odd},a")).columns["x"]

        assert quick.numbers[:30].tolist() == slow.numbers[:30].tolist()
        assert quick.cells[:30].tolist() == slow.cells[:30].tolist()


@pytest.mark.parametrize(
    "text",
    ["1_000", "0x1F", "NAN", "+-5", "1e", "infinity", "12345678901234567890", "1e-400"],
)
def test_a_text_alone_in_its_column_is_read_as_among_others(csv, text):
    """What pandas makes of a whole column is what each value says by itself."""
    rows = [f"{x},{'ab'[i % 2]}" for i, x in enumerate(["3"] * 30)]
    column = opened(csv("x,class", *rows, f"{text},a")).columns["x"]
    alone = Parsing().column([text], np.array([0]), "auto")

    assert column.cells[-1] == alone.cells[0]


def test_files_are_written_in_many_ways(tmp_path):
    """Semicolons, decimal commas, latin-1, no header."""
    path = tmp_path / "german.csv"
    text = "".join(f"{i},5;{'übrig' if i % 2 else 'kein'}\n" for i in range(30))
    path.write_text(text, encoding="latin-1")
    layout = Layout(
        sep=";", encoding="latin-1", has_header=False, parsing=Parsing(decimal=",")
    )
    table = opened(path, target="2", layout=layout)

    assert table.classes == ("kein", "übrig")
    assert table.columns["1"].numbers.tolist() == [i + 0.5 for i in range(30)]


def test_duplicate_and_quoted_names_are_columns(csv):
    """As pandas calls them; texts are read from the right place."""
    path = csv(
        'a,a,"b, c",class', *(f"1,u{i % 2},v{i % 3},{'xy'[i % 2]}" for i in range(30))
    )
    table = opened(path)

    assert list(table.columns) == ["a", "a.1", "b, c"]
    assert len(set(table.columns["a.1"].buckets)) == 2
    assert len(set(table.columns["b, c"].buckets)) == 3


def test_declarations_are_taken_up(csv):
    """Ranges, levels, codes and dates, and columns to leave out."""
    path = csv(
        "age,job,code,born,id,class",
        *(
            f"{i},j{i % 2},{i % 3},2001-02-0{i % 9 + 1},{i},{'ab'[i % 2]}"
            for i in range(40)
        ),
    )
    ranges = csv("column,low,high", "age,0,100", "born,0,1000", name="ranges.csv")
    levels = csv(
        "column,level", "job,j0", "job,j1", "code,1", "code,", name="levels.csv"
    )
    table = opened(
        path,
        left_out=["id"],
        declarations=Declarations(
            ranges=ranges, levels=levels, categorical=["code"], dates=["born"]
        ),
    )

    assert list(table.columns) == ["age", "job", "code", "born"]
    assert table.declared["age"].range == (0, 100)
    assert table.declared["job"].levels == ("j0", "j1")
    assert table.declared["code"].kind == "text"
    assert table.declared["born"].kind == "date"
    assert table.declared["born"].range == (0, 1000)
    assert table.shape.num_measured == 0
    assert np.isnan(table.columns["code"].numbers).all()


def test_columns_may_be_named_together(csv):
    """With commas between, or the option again; a name with a comma is a name, too."""
    path = csv('a,b,"c,d",class', *(f"1,2,3,{'xy'[i % 2]}" for i in range(30)))

    assert list(opened(path, left_out=["a,b"]).columns) == ["c,d"]
    assert list(opened(path, left_out=["a", "c,d"]).columns) == ["b"]


def test_the_task_follows_from_the_target_unless_it_is_stated(csv):
    """More than 20 numbers are numbers; classes may be declared."""
    path = csv("x,y,z", *(f"{i},{i % 25},{'abc'[i % 3]}" for i in range(100)))

    assert opened(path, target="y").is_regression
    assert len(opened(path, target="y", task="classification").classes) == 25
    assert opened(path, target="x", task="regression").shape.num_measured == 3
    declared = opened(path, target="z", classes=["a,b"])
    assert declared.classes == ("a", "b")
    assert (declared.answers == -1).sum() == 33


@pytest.mark.parametrize(
    ("lines", "target", "told"),
    [
        ([], "class", "table.csv is empty"),
        ([HEADER], "class", "has a header and no rows"),
        ([HEADER, *ROWS], None, "--target must name the column of"),
        ([HEADER, *ROWS], "klass", "did you mean 'class'"),
        ([HEADER, *ROWS[:9]], "class", "has 9 rows; at least 20 are needed"),
        (["class", *"ab" * 20], "class", "no column besides --target 'class'"),
        ([HEADER, *ROWS[::2]], "class", "one class only"),
        (["x,y", *(f"1,n{i}" for i in range(40))], "y", "as many different values as"),
        (
            [HEADER, *ROWS, "1,2,3,4,5"],
            "class",
            "cannot be read as CSV: a row has more",
        ),
        ([HEADER, *(f"{row},5" for row in ROWS)], "class", "cannot be read as CSV"),
        (["x" + ",c" * 12, *ROWS], None, "c.5, ..., c.11"),
        (["0.1,0.2,secret", *ROWS], "class", "looks like data, not like the names"),
        (["secret,b,no", *("n,b,no", "m,c,yes") * 20], "no", "looks like data"),
        (["n,y", *(f"a,{i}" for i in range(20))], "y", "numbers by --task regression"),
        (
            ["x;class", *("1;a", "2;b") * 20],
            "class",
            "if ',' separates them (--sep says",
        ),
    ],
)
def test_a_bad_file_is_one_line(call, csv, lines, target, told):
    """It says which file and column, and what to do; the exit code is 2."""
    path = csv(*lines)
    options = () if target is None else ("--target", target)
    report = path.with_name("report")
    code, out, err = call("train", "--data", path, "--report", report, *options)

    assert code == 2
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert told in err
    assert not report.exists()
    assert "secret" not in out + err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--delta", "0.1"], "--delta must be below one over the 48 rows or units"),
        (["--batch-size", "49"], "at most the 48 rows or units"),
        (["--unit-column", "z"], "--unit-column 'z' is no column of"),
        (["--unit-column", "x"], "has rows without a value, which belong to no unit"),
        (["--unit-column", "y"], "values of --unit-column; at least 20 are needed"),
        (["--encoding", "utf-99"], "--encoding 'utf-99' is not known"),
        (["--encoding", "utf-16"], "is not written in utf-16; state its --encoding"),
        (["--sep", "toolong"], "--sep must be one character, or \\t for a tab, got"),
        (["--decimal", ""], "--decimal must be one character, got ''"),
        (["--decimal", ","], "--decimal ',' also separates columns; state another"),
        (["--task", "sorting"], "'--task': 'sorting' is not one of 'classification'"),
        (["--classes", "a"], "--classes must name two classes or more"),
        (
            ["--classes", "a,b", "--task", "regression"],
            "--classes is for classification",
        ),
        (["--categorical", "y", "--dates", "y"], "contradicts another option"),
        (["--optimizer", "lbfgs"], "LBFGS cannot be made private"),
    ],
)
def test_a_bad_option_is_one_line(train, csv, options, told):
    """It says which option, its value and the remedy, before anything is spent."""
    rows = [f"{i or ''},{i % 5},{'ab'[i % 2]}" for i in range(60)]
    code, _out, err, report = train(csv(HEADER, *rows), *options)

    assert code == 2
    assert err.count("\n") == 1
    assert told in err
    assert not report.exists()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["column,low", "x,0"], "has no column 'high': it needs column,low,high"),
        (["column,low,high", "z,0,1"], "--ranges 'z' is no column of"),
        (["column,low,high", ",0,1"], "--ranges '' is no column of"),
        (["column,low,high", "x,0,1", "y,1,1"], "the range of 'y'"),
        (["column,low,high", "x,0,1", "y,a,1"], "the range of 'y' in"),
        (["column,low,high", "x,0,1", "x,0,2"], "contradicts another option"),
    ],
)
def test_a_bad_file_of_ranges_is_one_line(train, csv, lines, told):
    """Ranges are public facts that the user declares, so they must be whole."""
    ranges = csv(*lines, name="ranges.csv")
    code, _out, err, _report = train(csv(HEADER, *ROWS), "--ranges", ranges)

    assert code == 2
    assert told in err


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["column", "x"], "has no column 'level'"),
        (["column,level", "z,a"], "--levels 'z' is no column of"),
        (["column,level", ",a"], "--levels '' is no column of"),
    ],
)
def test_a_bad_file_of_levels_is_one_line(train, csv, lines, told):
    """As ranges are."""
    levels = csv(*lines, name="levels.csv")
    code, _out, err, _report = train(csv(HEADER, *ROWS), "--levels", levels)

    assert code == 2
    assert told in err


def test_declarations_of_columns_that_are_not_used_are_fine(csv):
    """A file of ranges may serve several runs, which leave out other columns."""
    ranges = csv("column,low,high", "x,0,1", "y,0,1", name="ranges.csv")
    table = opened(
        csv(HEADER, *ROWS), left_out=["x"], declarations=Declarations(ranges=ranges)
    )

    assert list(table.columns) == ["y"]


def test_a_missing_file_is_one_line(call, tmp_path):
    """Missing, a folder, or not text: each says so."""
    code, _out, err = call("train", "--data", tmp_path / "none.csv")
    assert code == 2
    assert "there is no file" in err
    assert "mnist, digits, breast_cancer or a CSV file" in " ".join(err.split())

    code, _out, err = call("train", "--data", tmp_path)
    assert code == 2
    assert "cannot be read as CSV" in err

    (tmp_path / "table.XLSX").write_bytes(b"PK")
    code, _out, err = call("train", "--data", tmp_path / "table.XLSX")
    assert code == 2
    assert "is no CSV file; write one from it, such as by pandas.read_excel(" in err

    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80\n")
    code, _out, err = call("train", "--data", tmp_path / "binary.csv")
    assert code == 2
    assert "is not written in utf-8" in err


def test_a_tab_can_be_typed(csv):
    """As a shell passes it on: a backslash and a letter."""
    file = read_csv(csv("x\ty", "1\t2"), Layout(sep="\\t"), known="")

    assert file.names == ("x", "y")


def test_a_class_with_a_comma_is_quoted(csv):
    """As it would be in the file."""
    path = csv("x,z", *('1,"high, really"', "2,low") * 20)

    declared = opened(path, target="z", classes=['"high, really", low'])
    assert declared.classes == ("high, really", "low")
    assert sorted(declared.answers) == [0] * 20 + [1] * 20


def test_short_rows_lack_values(csv):
    """Rows that end early, as spreadsheets write them."""
    path = csv(HEADER, *(f"{i},{'ab'[i % 2]}" for i in range(3)), *ROWS)
    file = read_csv(path, Layout(), known="")

    with pytest.raises(InputError, match="is no column of"):
        opened(path, target="none")
    assert file.columns({"class": "text"})["class"].gaps[:3].all()
