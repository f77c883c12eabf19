"""A trained model as a file that plain torch loads, and predictions with it.

The file holds weights, and, for columns, how they become features: public numbers, and
what was released with noise. It holds no row, and no name of a level.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor, nn

from dp._typing import TabularModel
from dp.cli._errors import InputError
from dp.cli._models import tabular_model
from dp.cli._problem import Classification, Problem, Regression
from dp.cli._read import Layout, one_of, read_csv
from dp.cli._tabular import CsvTable
from dp.tables import Encoder, Fitted, Parsing, ScaledTarget


if TYPE_CHECKING:
    from dp.tables._parsing import Kind


__all__ = ("FILE", "SavedModel", "predict", "write")

FILE: Final = "model.pt"
_FORMAT: Final = "forwarding-dp-model/1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """What has to be known to predict with weights.

    Attributes:
        kind: The kind of model.
        encoder: How columns become features.
        problem: What its outputs mean.
        target: The column that is predicted.
        layout: How the file that it was trained on was written.
    """

    kind: TabularModel
    encoder: Encoder
    problem: Problem
    target: str
    layout: Layout

    @classmethod
    def of(
        cls, csv: CsvTable, fitted: Fitted, kind: TabularModel, layout: Layout
    ) -> "SavedModel":
        """Return what has to be known of a table."""
        return cls(
            kind=kind,
            encoder=fitted.encoder,
            problem=csv.problem(fitted),
            target=csv.target,
            layout=layout,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain types, as ``torch.load`` reads by default."""
        if isinstance(self.problem, Classification):
            means: dict[str, Any] = {"classes": list(self.problem.classes)}
        else:
            means = {"scaled_target": asdict(self.problem.target)}
        return {
            "kind": self.kind,
            "encoder": self.encoder.to_dict(),
            "target": self.target,
            "layout": asdict(self.layout),
            **means,
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> "SavedModel":
        """Return what :meth:`to_dict` wrote.

        Raises:
            KeyError, TypeError: If it is something else.
        """
        problem: Problem = (
            Classification(classes=tuple(body["classes"]))
            if "classes" in body
            else Regression(target=ScaledTarget(**body["scaled_target"]))
        )
        return cls(
            kind=body["kind"],
            encoder=Encoder.from_dict(body["encoder"]),
            problem=problem,
            target=body["target"],
            layout=Layout(
                **{**body["layout"], "parsing": Parsing(**body["layout"]["parsing"])}
            ),
        )


def write(folder: Path, model: nn.Module, saved: SavedModel | None) -> None:
    """Write the weights, and how features are made if they are of columns."""
    about = {} if saved is None else saved.to_dict()
    body = {"format": _FORMAT, "state_dict": model.state_dict(), **about}
    torch.save(body, folder / FILE)


def _load(path: Path) -> tuple[SavedModel, nn.Module]:
    """Return the model that :func:`write` wrote.

    Raises:
        InputError: If it is none, or none of columns.
    """
    try:
        body = torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; pass {path / FILE}") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.PickleError) as error:
        raise InputError(f"{path} is no model that torch can load") from error
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise InputError(f"{path} is no model that `dp train` left")
    if "encoder" not in body:
        raise InputError(
            f"{path} was trained on images, not on a CSV file; load its state_dict with"
            " torch.load"
        )
    saved = SavedModel.from_dict(body)
    weights: Mapping[str, Tensor] = body["state_dict"]
    num_features = next(iter(weights.values())).shape[1]
    model = tabular_model(saved.kind, num_features, saved.problem.num_outputs)
    model.load_state_dict(weights)
    return saved, model


@torch.no_grad()
def predict(path: Path, data: Path, out: Path, **changed: Any) -> int:
    """Write a prediction for every row of *data*; return for how many.

    Args:
        path: The model.
        data: A CSV file that has the model's columns.
        out: The CSV file to write.
        changed: In what *data* is written otherwise than the file of the training.

    Raises:
        InputError: If a file cannot be used.
    """
    saved, model = _load(path)
    layout = replace(saved.layout, **changed)
    file = read_csv(data, layout, known="--data is a CSV file")
    kinds: dict[str, Kind] = {
        feature.name: feature.kind for feature in saved.encoder.features
    }
    missing = [name for name in kinds if name not in file.names]
    if missing:
        raise InputError(
            f"{data} lacks columns that the model was trained on:"
            f" {one_of([json.dumps(name) for name in missing])}"
        )
    outputs = model(saved.encoder(file.columns(kinds)))
    _write_csv(out, saved, outputs)
    return len(outputs)


def _write_csv(out: Path, saved: SavedModel, outputs: Tensor) -> None:
    import pandas as pd  # noqa: PLC0415 -- an optional dependency

    columns: dict[str, Sequence[Any]] = {}
    if isinstance(saved.problem, Classification):
        probabilities, numbers = outputs.softmax(dim=1).max(dim=1)
        classes = saved.problem.classes
        columns[saved.target] = [classes[number] for number in numbers.tolist()]
        columns["probability"] = probabilities.numpy().round(4).tolist()
    else:
        columns[saved.target] = saved.problem.numbers(outputs).tolist()
    try:
        pd.DataFrame(columns).to_csv(out, index=False)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from error
