"""The options of the commands: what each means, and what values it takes."""

from pathlib import Path
from typing import Annotated, Final

import typer

from dp import _checks
from dp._typing import NeighboringRelation, TabularModel, Task
from dp.cli._errors import InputError


__all__ = (
    "BUILT_IN",
    "Advantage",
    "BatchSize",
    "Categorical",
    "CertificatePath",
    "CertificatePaths",
    "Classes",
    "CommonDelta",
    "Compare",
    "Data",
    "DataPath",
    "DateFormat",
    "Dates",
    "DebugSeed",
    "Decimal",
    "Delta",
    "Encoding",
    "Epsilon",
    "GroupSize",
    "HoldOut",
    "Into",
    "LearningRate",
    "LeaveOut",
    "Levels",
    "MaxGradNorm",
    "ModelKind",
    "ModelPath",
    "NoHeader",
    "NoiseMultiplier",
    "OddsFactor",
    "OptimizerName",
    "Plot",
    "Predictions",
    "Probability",
    "Quick",
    "Ranges",
    "Relation",
    "Report",
    "Sep",
    "Steps",
    "Target",
    "TargetEpsilon",
    "TaskName",
    "TprAt100",
    "TprAt1000",
    "TrainingDelta",
    "TrainingSteps",
    "UnitColumn",
    "check",
)

BUILT_IN: Final = ("mnist", "digits", "breast_cancer")

Data = Annotated[
    str,
    typer.Option(
        help=f"What to train on: {', '.join(BUILT_IN)}, or a CSV file.",
        metavar="NAME|PATH.csv",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="CSV only: the column to predict, a class or a number.", metavar="COLUMN"
    ),
]
Ranges = Annotated[
    Path | None,
    typer.Option(
        help="CSV only: a file of column,low,high with public ranges of numbers. Columns"
        " without one are scaled by private statistics, which epsilon pays for.",
        metavar="PATH.csv",
    ),
]
Levels = Annotated[
    Path | None,
    typer.Option(
        help="CSV only: a file of column,level with the public categories of columns,"
        " one a row. Those of other columns are found by a private statistic.",
        metavar="PATH.csv",
    ),
]
Categorical = Annotated[
    list[str] | None,
    typer.Option(
        help="CSV only: columns of categories that look like numbers, such as codes.",
        metavar="COLUMN,...",
    ),
]
Dates = Annotated[
    list[str] | None,
    typer.Option(
        help="CSV only: columns of dates whose month and weekday matter.",
        metavar="COLUMN,...",
    ),
]
DateFormat = Annotated[
    str | None,
    typer.Option(
        help="CSV only: how --dates are written, such as %d.%m.%Y; by default ISO 8601.",
        metavar="FORMAT",
    ),
]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option(
        help="CSV only: columns to leave out, such as names.", metavar="COLUMN,..."
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        help="CSV only: the classes of the target, quoted if they have commas. By"
        " default those that occur, which the certificate then calls public.",
        metavar="CLASS,...",
    ),
]
TaskName = Annotated[
    Task | None,
    typer.Option(
        help="CSV only: what to predict; by default a number if the target has more than"
        " 20 different ones, and else a class.",
    ),
]
UnitColumn = Annotated[
    str | None,
    typer.Option(
        help="CSV only: the column that says whose a row is. All rows of a person are"
        " protected together.",
        metavar="COLUMN",
    ),
]
Sep = Annotated[
    str,
    typer.Option(help="CSV only: the separator; \\t is a tab.", metavar="CHARACTER"),
]
Encoding = Annotated[
    str,
    typer.Option(
        help="CSV only: how text is encoded, such as latin-1.", metavar="NAME"
    ),
]
Decimal = Annotated[
    str,
    typer.Option(help="CSV only: the decimal separator.", metavar="CHARACTER"),
]
NoHeader = Annotated[
    bool,
    typer.Option(
        "--no-header",
        help="CSV only: the first row is data; columns are called 1, 2, 3 and so on.",
    ),
]
HoldOut = Annotated[
    float,
    typer.Option(
        help="CSV only: the share of rows to measure a score on, which privacy does not"
        " cover; 0 trains on all.",
        metavar="0..0.9",
    ),
]
ModelKind = Annotated[
    TabularModel | None,
    typer.Option(
        help="CSV only: a linear model, or one with a hidden layer of 32; by default"
        " what the number of rows, columns and epsilon allow.",
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare",
        help="Also train without privacy, and show both scores. The second model is not"
        " kept; the certificate names it.",
    ),
]
Epsilon = Annotated[
    float,
    typer.Option(
        "--epsilon", help="Privacy loss that must not be exceeded.", metavar="> 0"
    ),
]
TargetEpsilon = Annotated[
    float | None,
    typer.Option(
        "--epsilon",
        help="Privacy loss that must not be exceeded; or give a risk instead.",
        metavar="> 0",
    ),
]
Advantage = Annotated[
    float | None,
    typer.Option(
        help="The most that an attacker may name members more often than others.",
        metavar="0..1",
    ),
]
TprAt100 = Annotated[
    float | None,
    typer.Option(
        "--tpr-at-1-in-100",
        help="The share of members that an attack with 1 false alarm in 100 may find.",
        metavar="0.01..1",
    ),
]
TprAt1000 = Annotated[
    float | None,
    typer.Option(
        "--tpr-at-1-in-1000",
        help="The share of members that an attack with 1 false alarm in 1000 may find.",
        metavar="0.001..1",
    ),
]
OddsFactor = Annotated[
    float | None,
    typer.Option(
        help="By what anyone's odds about a row may grow, except in 1 run of 1000.",
        metavar="> 1",
    ),
]
Delta = Annotated[
    float,
    typer.Option(
        help="Probability with which epsilon may fail; well below one over the rows.",
        metavar="0..1",
    ),
]
Steps = Annotated[int, typer.Option(help="Number of training steps.", metavar=">= 1")]
BatchSize = Annotated[
    float | None,
    typer.Option(
        help="Expected number of rows in a batch; by default a quarter of the images, and"
        " all rows of a CSV file, or 5000. Smaller batches are drawn by coin flips, so"
        " their size varies.",
        metavar="> 0",
    ),
]
MaxGradNorm = Annotated[
    float,
    typer.Option(help="Norm to which every row's gradient is clipped.", metavar="> 0"),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="Learning rate; by default 0.25 for sgd on images, what suits the steps on"
        " columns, and torch's for other optimizers.",
        metavar="> 0",
    ),
]
OptimizerName = Annotated[
    str,
    typer.Option(
        help="Any optimizer of torch.optim by its name, such as sgd (with momentum"
        " 0.9), adam or rmsprop.",
        metavar="NAME",
    ),
]
DebugSeed = Annotated[
    int | None,
    typer.Option(
        help="For the same run twice: NOT PRIVATE, since anyone can repeat its noise.",
        metavar="SEED",
    ),
]
GroupSize = Annotated[
    int,
    typer.Option(
        help="How many rows may differ at once, such as the most rows of one person;"
        " epsilon then covers all of them together.",
        metavar=">= 1",
    ),
]
Report = Annotated[
    Path,
    typer.Option(
        help="Folder for index.html, which a browser shows, certificate.json, .txt and"
        " .png, training.png and model.pt; earlier ones are replaced.",
        metavar="FOLDER",
    ),
]
TrainingDelta = Annotated[
    float | None,
    typer.Option(
        "--delta",
        help="Probability with which epsilon may fail; by default 1e-5, or the power of"
        " ten that is at most a tenth of one over the rows. Their number is public.",
        metavar="0..1",
    ),
]
TrainingSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        help="Number of training steps; by default 160 for images, and 80 to 1000 for"
        " columns, by the number of rows and columns.",
        metavar=">= 1",
    ),
]
ModelPath = Annotated[
    Path, typer.Argument(help="The model.pt that train left.", metavar="MODEL")
]
DataPath = Annotated[
    Path, typer.Argument(help="A CSV file with the model's columns.", metavar="DATA")
]
Predictions = Annotated[
    Path,
    typer.Option(
        help="The CSV file to write, one row a row of the data.", metavar="PATH.csv"
    ),
]
NoiseMultiplier = Annotated[
    float,
    typer.Option(
        help="Standard deviation of the noise over the clipping norm.", metavar=">= 0"
    ),
]
Probability = Annotated[
    float,
    typer.Option(
        help="Probability that a row is in a batch; 1 claims no amplification.",
        metavar="0..1",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        help="Also draw a picture of it here, in the format that the ending names.",
        metavar="PATH.png",
    ),
]
Relation = Annotated[
    NeighboringRelation, typer.Option(help="What two neighbouring datasets are.")
]
CertificatePath = Annotated[
    Path,
    typer.Argument(
        help="The certificate.json of a run, or of dp.tune.", metavar="PATH"
    ),
]
CertificatePaths = Annotated[
    list[Path],
    typer.Argument(help="The certificate.json of each run.", metavar="PATH..."),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Compute by this package's closed form, as the certificate was, and not by"
        " dp_accounting: for runs with many noise multipliers.",
    ),
]
CommonDelta = Annotated[
    float | None,
    typer.Option(
        "--delta",
        help="The delta to state epsilon at; by default the one that all share.",
        metavar="0..1",
    ),
]
Into = Annotated[
    Path | None,
    typer.Option(
        "--report",
        help="Also write index.html and certificate.json, .txt and .png into this folder.",
        metavar="FOLDER",
    ),
]


def check(**rules: dict[str, float | None]) -> None:
    """Apply the checks of :mod:`dp._checks` to options, under the options' names.

    Raises:
        InputError: If a value is out of range; None is not checked.
    """
    for rule, options in rules.items():
        for option, value in options.items():
            if value is not None:
                _apply(rule, option, value)


def _apply(rule: str, option: str, value: float) -> None:
    try:
        getattr(_checks, rule)(**{option: value})
    except ValueError as error:
        raise InputError(str(error)) from error
