"""The options of the commands: what each means, and what values it takes."""

from pathlib import Path
from typing import Annotated, Final

import typer

from dp import _checks
from dp._typing import NeighboringRelation
from dp.cli._errors import InputError


__all__ = (
    "BUILT_IN",
    "BatchSize",
    "CertificatePath",
    "CertificatePaths",
    "CommonDelta",
    "Data",
    "DebugSeed",
    "Delta",
    "Epsilon",
    "GroupSize",
    "Into",
    "LearningRate",
    "MaxGradNorm",
    "NoiseMultiplier",
    "OptimizerName",
    "Plot",
    "Probability",
    "Ranges",
    "Relation",
    "Report",
    "Steps",
    "Target",
    "check",
)

BUILT_IN: Final = ("mnist", "digits", "breast_cancer")

Data = Annotated[
    str,
    typer.Option(
        help=f"What to train on: {', '.join(BUILT_IN)}, or a CSV file of"
        " numbers with a header.",
        metavar="NAME|PATH.csv",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="CSV only: the column that holds the class of each row.", metavar="COLUMN"
    ),
]
Ranges = Annotated[
    Path | None,
    typer.Option(
        help="CSV only: a file of column,low,high with the public range of every"
        " feature. Without it features are scaled by asinh, which knows nothing of"
        " the data.",
        metavar="PATH.csv",
    ),
]
Epsilon = Annotated[
    float,
    typer.Option(
        "--epsilon", help="Privacy loss that must not be exceeded.", metavar="> 0"
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
        help="Expected number of rows in a batch; by default a quarter of the rows."
        " Batches are drawn by coin flips, so their size varies.",
        metavar="> 0",
    ),
]
MaxGradNorm = Annotated[
    float,
    typer.Option(help="Norm to which every row's gradient is clipped.", metavar="> 0"),
]
DebugSeed = Annotated[
    int | None,
    typer.Option(
        help="For the same run twice: NOT PRIVATE, since anyone can repeat its noise.",
        metavar="SEED",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="Learning rate; by default 0.25 for sgd, and torch's for the others.",
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
Report = Annotated[
    Path,
    typer.Option(
        help="Folder for certificate.json, .txt and .png and training.png; earlier"
        " ones are replaced.",
        metavar="FOLDER",
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
GroupSize = Annotated[
    int,
    typer.Option(
        help="How many rows may differ at once, such as the most rows of one person;"
        " epsilon then covers all of them together.",
        metavar=">= 1",
    ),
]
CertificatePath = Annotated[
    Path, typer.Argument(help="The certificate.json of a run.", metavar="PATH")
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
        help="Also write certificate.json, .txt and .png into this folder.",
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
