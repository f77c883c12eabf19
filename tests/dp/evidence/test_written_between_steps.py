"""Buffers and frozen weights that a training loop writes between its steps.

A mean of the batch that stands in a buffer is one of every example's, and no exchange of
examples changes it. A teacher that follows its student is written as well, and is made
of released weights alone: what it was, what it is and the weights show that.
"""

import copy

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

import dp
from dp import EvidenceWarning
from dp.evidence._averages import Averages

from .conftest import evidence_of
from .losses import cross_entropy


class Centred(nn.Module):
    """A layer before which the mean of some batch is taken off."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.linear = nn.Linear(width, 3)

    def forward(self, x):
        return self.linear((x - self.mean) * self.scale)


@pytest.fixture
def model():
    return nn.Sequential(Centred(4), nn.Tanh(), Centred(3))


@pytest.fixture
def make_run(make_plan, model):
    """Build the optimizer of a model, and the loader of its batches."""

    def make(trained=model):
        plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=0.5))
        x, y = torch.randn(64, 4) + 1, torch.randint(0, 3, (64,))
        loader = plan.loader(TensorDataset(x, y))
        parameters = [p for p in trained.parameters() if p.requires_grad]
        inner = torch.optim.SGD(parameters, lr=0.1)
        return dp.DPOptimizer(inner, plan=plan, loader=loader), loader

    return make


def in_place(m, x):
    m[0].mean.copy_(x.mean(0))


def by_assignment(m, x):
    m[0].mean = x.mean(0)


def by_data(m, x):
    m[0].mean.data = x.mean(0)


def as_a_running_mean(m, x):
    m[0].mean.lerp_(x.mean(0), 0.1)


def in_the_second_layer_of_its_kind(m, x):
    m[2].mean.copy_(torch.tanh(m[0](x)).mean(0))


def in_a_frozen_weight(m, x):
    m[0].scale.data.fill_(1 / float(x.std()))


def as_a_statistic_of_a_norm(m, x):
    m[0].get_buffer("mean").add_(x.mean())


WRITES = [
    in_place,
    by_assignment,
    by_data,
    as_a_running_mean,
    in_the_second_layer_of_its_kind,
    in_a_frozen_weight,
    as_a_statistic_of_a_norm,
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
@torch.no_grad()
def test_what_the_loop_writes_is_told(make_run, model, write, when):
    """Before the losses of a step, of its own batch, or after it, of the last one."""
    optimizer, loader = make_run()

    def losses(batch):
        return cross_entropy(model(batch[0]), batch[1])

    def train():
        for (x, y), _ in zip(loader, range(3), strict=False):
            if when == "before":
                write(model, x)
            with torch.enable_grad():
                optimizer.backward(losses, (x, y))
            optimizer.step()
            if when == "after":
                write(model, x)

    with pytest.warns(EvidenceWarning, match=r"beside its batch: Centred\.") as told:
        train()

    assert len(told) == 1
    assert evidence_of(optimizer).inconclusive
    (stated,) = optimizer.mechanism.watch.assumed()
    assert stated in optimizer.certificate().assumptions


def by_a_share(teacher, student):
    for its, mine in zip(teacher.parameters(), student.parameters(), strict=True):
        its.lerp_(mine.to(its.dtype), 0.01)


def by_two_products(teacher, student):
    for its, mine in zip(teacher.parameters(), student.parameters(), strict=True):
        its.copy_(0.995 * its + 0.005 * mine)


def by_a_copy(teacher, student):
    teacher.load_state_dict(student.state_dict())


class Regression(nn.Sequential):
    """Whose last layer has a bias of one element."""

    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("follow", [by_a_share, by_two_products, by_a_copy])
def test_a_teacher_that_follows_its_student_is_not_told(make_run, follow, dtype):
    student = Regression()
    teacher = copy.deepcopy(student).to(dtype).requires_grad_(requires_grad=False)
    optimizer, loader = make_run(student)

    def losses(batch):
        its = teacher(batch[0].to(dtype)).float()
        return (student(batch[0]) - 1.1 * its).square().sum(1)

    for batch, _ in zip(loader, range(4), strict=False):
        optimizer.backward(losses, batch)
        optimizer.step()
        with torch.no_grad():
            follow(teacher, student)

    assert not evidence_of(optimizer).inconclusive
    assert not optimizer.mechanism.watch.assumed()


def test_an_average_of_the_program_is_not_told(make_run):
    """It counts its updates in a buffer."""
    student = Regression()
    average = AveragedModel(student)
    optimizer, loader = make_run(student)

    def losses(batch):
        with torch.no_grad():
            its = average(batch[0])
        return (student(batch[0]) - 1.1 * its).square().sum(1) * float(
            1 + average.n_averaged
        )

    for batch, _ in zip(loader, range(4), strict=False):
        optimizer.backward(losses, batch)
        optimizer.step()
        average.update_parameters(student)

    assert not evidence_of(optimizer).inconclusive


def test_what_the_losses_do_not_follow_is_not_told(make_run, model):
    """As statistics that only a log reads."""
    optimizer, loader = make_run()
    model[0].register_buffer("seen", torch.zeros(4))

    def losses(batch):
        return cross_entropy(model(batch[0]), batch[1])

    for (x, y), _ in zip(loader, range(4), strict=False):
        model[0].seen.copy_(x.mean(0))
        optimizer.backward(losses, (x, y))
        optimizer.step()

    assert not evidence_of(optimizer).inconclusive


@given(
    st.floats(1e-3, 1.0),
    st.integers(1, 9),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.integers(0, 2**32),
)
def test_shares_of_the_way_are_recognised_and_other_ways_are_not(
    share, width, dtype, seed
):
    """Of one element, anything is on the way: it has to go the share of the others."""
    generator = torch.Generator().manual_seed(seed)
    big, small = (torch.randn(s, generator=generator) for s in (32, width))
    before = {"big": torch.zeros(32), "small": torch.zeros(width)}
    weights = [big, small]
    honest = {
        label: (b.to(dtype), b.double().lerp(w.double(), share).to(dtype))
        for (label, b), w in zip(before.items(), weights, strict=True)
    }
    wrong = {label: (b, now + 1) for label, (b, now) in honest.items()}

    averages = Averages(weights)
    assert averages.followed(honest) == {"big", "small"}
    assert averages.followed(wrong) == set()
    assert averages.followed(honest | {"small": wrong["small"]}) == {"big"}


@pytest.mark.parametrize(
    ("before", "now", "is_count"),
    [
        (torch.tensor(3), torch.tensor(4), True),
        (torch.tensor([3]), torch.tensor([4]), True),
        (torch.tensor(3), torch.tensor(7), False),
        (torch.tensor([3, 3]), torch.tensor([4, 4]), False),
        (torch.tensor(3.0), torch.tensor(4.0), False),
        (torch.tensor(False), torch.tensor(True), False),  # noqa: FBT003
        (torch.tensor(3j), torch.tensor(1 + 3j), False),
        (torch.tensor(3), torch.tensor([4]), False),
        (3, 4, False),
    ],
    ids=str,
)
def test_a_count_goes_up_by_one(before, now, is_count):
    """Anything else may be how many examples there were."""
    assert Averages([]).followed({"n": (before, now)}) == ({"n"} if is_count else set())


def test_few_elements_have_to_go_the_share_of_the_others():
    """A mean of the batch, in one element, is on the way to some bias."""
    weights = torch.arange(1.0, 9.0), torch.ones(1)
    alone = {"mean": (torch.zeros(1), torch.full((1,), 0.3))}
    teacher = {"weight": (torch.zeros(8), 0.1 * weights[0])}
    bias = {"bias": (torch.zeros(1), torch.full((1,), 0.1))}

    averages = Averages(weights)
    assert averages.followed(alone) == set()
    assert averages.followed(teacher | alone | bias) == {"weight", "bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_means_are_not_on_the_way_to_large_weights(dtype):
    """As a centre of features beside the scales of a norm: less than their rounding."""
    eps = torch.finfo(dtype).eps
    before, of_batch = (eps * torch.rand(16) for _ in range(2))
    centre = {"centre": (before.to(dtype), before.lerp(of_batch, 0.1).to(dtype))}

    assert Averages([torch.ones(16)]).followed(centre) == set()


def test_shards_are_followed_by_nothing():
    """They cannot be compared with whole tensors."""

    class Shard(torch.Tensor):
        placements = ()

    weight = torch.arange(1.0, 9.0)
    teacher = {"weight": (torch.zeros(8), weight.clone())}

    assert Averages([weight.as_subclass(Shard)]).followed(teacher) == set()
