"""Loss functions that use other examples without a gradient, and a model for them."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Two layers that are trained, and a backbone that is not."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.frozen.requires_grad_(requires_grad=False)
        self.centre = 0.0
        self.total = np.zeros(4)
        self.centres = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def cross_entropy(z, y):
    return functional.cross_entropy(z, y, reduction="none")


def frozen_batch_norm(m, x, y):
    return cross_entropy(m(m.frozen(x)), y)


def largest_of_batch(m, x, y):
    return cross_entropy(m(x / x.abs().max()), y)


def detached_deviation(m, x, y):
    h = m.a(x)
    return cross_entropy(m.b(h / h.std(0).detach()), y)


def mean_as_float(m, x, y):
    losses = cross_entropy(m(x), y)
    return losses / losses.mean().item()


def mean_without_gradients(m, x, y):
    with torch.no_grad():
        mean = m.a(x).mean(0)
    return cross_entropy(m.b(m.a(x) - mean), y)


class Standardized(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.deviation = h.std(0)
        return (h - h.mean(0)) / ctx.deviation

    @staticmethod
    def backward(ctx, gradient):
        return gradient / ctx.deviation


def own_function(m, x, y):
    return cross_entropy(m.b(Standardized.apply(m.a(x))), y)


def mixup_with_neighbour(m, x, y):
    return cross_entropy(m(0.5 * x + 0.5 * x.roll(1, 0)), y)


def mixup_by_chance(m, x, y):
    return cross_entropy(m(0.9 * x + 0.1 * x[torch.randperm(len(x))]), y)


def ranks_as_targets(m, x, y):
    ranks = x[:, 0].argsort().argsort() / len(x)
    return (m(x)[:, 0] - ranks).square() + 0 * y


def hardest_quarter(m, x, y):
    losses = cross_entropy(m(x), y)
    return losses * (losses.detach() >= losses.detach().quantile(0.75))


def class_weights_of_batch(m, x, y):
    counts = functional.one_hot(y, 3).sum(0).clamp(min=1)
    return cross_entropy(m(x), y) / counts[y]


def nearest_neighbour_as_target(m, x, y):
    with torch.no_grad():
        away = torch.cdist(x, x).fill_diagonal_(float("inf"))
        target = m(x)[away.argmin(1)].softmax(1)
    return -(target * m(x).log_softmax(1)).sum(1) + 0 * y


def running_centre_in_python(m, x, y):
    m.centre = 0.9 * m.centre + 0.1 * float(x.mean())
    return cross_entropy(m(x - m.centre), y)


def running_mean_in_a_buffer(m, x, y):
    m.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
    return cross_entropy(m(x - m.mean), y)


def pieces_of_examples(m, x, y):
    losses = cross_entropy(m(x), y)
    return losses.detach().roll(1) * losses


def over_number_of_examples(m, x, y):
    return cross_entropy(m(x), y) / len(x)


def over_python_length_of_list(m, x, y):
    losses = cross_entropy(m(x), y)
    return losses / max(1, len([None for _ in losses]))


def centre_of_the_batch_before(m, x, y):
    losses = cross_entropy(m(x - m.centre), y)
    m.centre = float(x.mean())
    return losses


def mean_buffer_of_the_batch_before(m, x, y):
    losses = cross_entropy(m(x - m.mean), y)
    m.mean = x.mean(0).detach()
    return losses


def mean_array_of_the_batch_before(m, x, y):
    losses = cross_entropy(m(x - torch.from_numpy(m.total).float()), y)
    m.total[:] = x.mean(0).numpy()
    return losses


def centres_of_the_batches_before(m, x, y):
    z = m(x)
    losses = (z - m.centres[y].clone()).square().sum(1)
    m.centres.data.index_add_(0, y, 0.1 * (z.detach() - m.centres[y]))
    return losses


def slope_between_neighbours(m, x, y):
    """A gradient penalty at points between two examples."""
    between = (0.5 * x + 0.5 * x.roll(1, 0)).requires_grad_()
    (slope,) = torch.autograd.grad(m(between).sum(), between, create_graph=True)
    return cross_entropy(m(x), y) + slope.square().sum(1)


def centred_while_gradients_are_enabled(m, x, y):
    centre = x.mean(0) if torch.is_grad_enabled() else 0.0
    return cross_entropy(m(x - centre), y)


def over_mean_of_losses_to_differentiate(m, x, y):
    losses = cross_entropy(m(x), y)
    return losses / losses.mean().detach() if losses.requires_grad else losses


FOUND_BEFORE_A_RELEASE = [
    frozen_batch_norm,
    detached_deviation,
    mean_as_float,
    mean_without_gradients,
    own_function,
    mixup_with_neighbour,
    mixup_by_chance,
    ranks_as_targets,
    class_weights_of_batch,
    nearest_neighbour_as_target,
    running_centre_in_python,
    running_mean_in_a_buffer,
    pieces_of_examples,
    over_number_of_examples,
    over_python_length_of_list,
    centre_of_the_batch_before,
    mean_buffer_of_the_batch_before,
    mean_array_of_the_batch_before,
    centres_of_the_batches_before,
    slope_between_neighbours,
    centred_while_gradients_are_enabled,
    over_mean_of_losses_to_differentiate,
]
CARRIED_ON = [
    running_centre_in_python,
    running_mean_in_a_buffer,
    centre_of_the_batch_before,
    mean_buffer_of_the_batch_before,
    mean_array_of_the_batch_before,
    centres_of_the_batches_before,
]
# Whether one example is in the half that changes decides over these.
FOUND_IN_THE_FIRST_STEPS = [largest_of_batch, hardest_quarter]
