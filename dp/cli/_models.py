"""The models that are trained: small, and without layers that mix examples."""

from torch import nn

from dp._typing import TabularModel
from dp.cli._input import Table
from dp.tables._recipe import HIDDEN


__all__ = ("model_for", "tabular_model")


def model_for(table: Table) -> nn.Module:
    """Return a fresh model for the rows of a built-in table: a CNN for images.

    Tanh is used throughout: bounded activations keep gradients small, and clipping
    then loses less (Papernot et al. 2021, https://arxiv.org/abs/2007.14191).
    """
    num_outputs = table.problem.num_outputs
    if table.row_shape == (1, 28, 28):
        return _cnn_28(num_outputs)
    if table.row_shape == (1, 8, 8):
        return _cnn_8(num_outputs)
    (num_features,) = table.row_shape
    return tabular_model("mlp", num_features, num_outputs)


def tabular_model(kind: TabularModel, num_features: int, num_outputs: int) -> nn.Module:
    """Return a fresh model of columns: linear, at zero, or with one hidden layer."""
    if kind == "linear":
        linear = nn.Linear(num_features, num_outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear
    return nn.Sequential(
        nn.Linear(num_features, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, num_outputs)
    )


def _cnn_28(num_classes: int) -> nn.Module:
    """The CNN 16-32 of the literature on private MNIST, 26 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, num_classes),
    )


def _cnn_8(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )
