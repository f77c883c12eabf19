"""Replay: one record changes the sums by what is declared, and nothing else.

Shapes: ``B`` examples in a batch.
"""

import itertools
import math
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, PoissonSampling, PrivacyPlan
from dp._keystream import new_key, replayed_keys
from dp.audit import replay, training
from dp.audit._replay import _WithOutlier
from dp.sampling._draws import poisson_sample


sys.path.insert(0, str(Path(__file__).parent))
import audit_builds as builds


@pytest.fixture
def plan():
    """A record is drawn in none of the steps with probability 1e-6."""
    return PrivacyPlan(
        sampling=PoissonSampling(sampling_probability=0.75),
        noise_multiplier=1.0,
        max_grad_norm=0.5,
        expected_batch_size=30.0,
        steps=10,
        target_delta=1e-5,
    )


def changed(plan, **changes):
    fields = {name: getattr(plan, name) for name in plan.__slots__}
    return PrivacyPlan(**{**fields, **changes})


def refuted(report, *, of_outlier=True):
    """What does not hold, of the record as it is or as an outlier."""
    return {
        f.claim.removeprefix("outlier: ")
        for f in report.findings
        if not f.holds and (of_outlier or not f.claim.startswith("outlier"))
    }


class Classifier(nn.Module):
    """Takes a batch and returns its losses; a layer between may be anything."""

    def __init__(self, *between):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), *between, nn.Linear(8, 3))

    def forward(self, batch):
        x, y_B = batch
        return nn.functional.cross_entropy(self.layers(x), y_B, reduction="none")


@pytest.fixture
def data():
    """Forty records, the last of which is far out."""
    torch.manual_seed(1)
    x = torch.randn(40, 4)
    x[-1] = 50.0
    return TensorDataset(x, torch.randint(3, (40,)))


@pytest.mark.slow
def test_a_right_run_replays(plan, data):
    """One record moves sums by the clipping norm, and nothing else."""
    report = replay(training(plan), Classifier(nn.Tanh()), data)

    assert report.ok, str(report)
    assert "of 0.5 allowed" in report.findings[0].detail
    assert "; 0 of 10" not in report.findings[0].detail


@pytest.mark.slow
def test_small_samples_of_one_record_less_are_the_same_but_for_it(plan):
    """Below 1/16, whose draws begin with their number, too."""
    small = changed(plan, sampling=PoissonSampling(sampling_probability=0.02))
    data = TensorDataset(torch.randn(400, 4), torch.randint(3, (400,)))

    report = replay(training(small), Classifier(), data)

    assert report.ok, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["zero_out", "replace_one"])
def test_where_the_number_of_records_is_public_a_neighbour_keeps_it(
    plan, data, relation
):
    """The last record becomes the first one: two contributions may differ."""
    plan = changed(plan, neighboring_relation=relation)

    def train(model, dataset):
        nonlocal plan
        training(changed(plan, expected_batch_size=len(dataset) / 10))(model, dataset)

    report = replay(train, Classifier(), data)

    assert report.ok, str(report)
    assert "of 1 allowed" in report.findings[0].detail


@pytest.mark.slow
def test_a_neighbour_may_be_given(plan, data):
    """As for a record that one fears most."""
    x, y_B = (t.clone() for t in data.tensors)
    x[7] = float("nan")
    report = replay(training(plan), Classifier(), data, neighbour=TensorDataset(x, y_B))

    assert report.ok, str(report)


@pytest.mark.slow
def test_a_wider_clipping_norm_does_not_replay(plan, data):
    """The declared sensitivity is exceeded, and by how much is said."""
    with builds.clip_scaled(1.5):
        report = replay(training(plan), Classifier(), data)

    assert refuted(report) == {"sums differ by the sensitivity at most"}
    assert "of 0.5 allowed" in str(report)


@pytest.mark.slow
def test_without_a_charge_the_plan_says_how_far_sums_may_move(plan, data):
    """A ledger that records nothing hides no clipping norm that is too wide."""
    with builds.uncharged_releases():
        report = replay(training(plan), Classifier(), data)
        with builds.clip_scaled(1.5):
            wider = replay(training(plan), Classifier(), data)

    assert report.ok, report.to_text()
    assert "sums differ by the sensitivity at most" in refuted(wider)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a private parameter was written to")
def test_dividing_by_the_size_of_the_batch_does_not_replay(plan, data):
    """The update depends on how many were drawn, besides through the noisy sum."""
    with builds.divided_by_the_batch():
        report = replay(training(plan), Classifier(), data)

    assert "public state is equal" in refuted(report)
    assert "layers.0.weight" in str(report)


class Remembering(nn.Module):
    """Keeps the mean of what it saw, as running statistics do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if len(x):
            self.mean = x.detach().mean(0)
        return x


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the forward pass writes private data")
def test_a_buffer_that_keeps_private_numbers_does_not_replay(plan, data):
    """It would be saved with the model."""
    report = replay(training(plan), Classifier(Remembering()), data)

    assert refuted(report) == {"public state is equal"}
    assert "one record changes layers.1.mean" in str(report)


@pytest.mark.slow
def test_what_is_printed_is_compared(plan, data, capsys):
    """A loss on the screen is a release; and it is not shown here either."""

    def train(model, dataset):
        print(sum(float(x.sum()) for x, _ in dataset))  # noqa: T201
        training(plan)(model, dataset)

    report = replay(train, Classifier(), data)

    assert refuted(report) == {"printed output is equal"}
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_what_differs_from_run_to_run_anyway_is_not_compared(plan, data):
    """Times, say; the report says what it left out."""
    calls = []

    def train(model, dataset):
        calls.append(1)
        print("took", len(calls))  # noqa: T201
        model.register_buffer("calls", torch.tensor(len(calls)))
        training(plan)(model, dataset)

    report = replay(train, Classifier(), data)

    assert report.ok
    assert "not compared, as they differ anyway: calls" in str(report)
    assert "not compared: it differs from run to run" in str(report)


@pytest.mark.slow
def test_a_run_whose_length_depends_on_a_record_does_not_replay(plan, data):
    """Neither in steps, nor by an error that one record raises."""

    def shorter(model, dataset):
        training(changed(plan, steps=len(dataset)))(model, dataset)

    def failing(model, dataset):
        training(plan)(model, dataset)
        if len(dataset) == 40:
            raise RuntimeError("too large")

    shortened = replay(shorter, Classifier(), data)
    failed = replay(failing, Classifier(), data)

    assert "runs are as long, and end alike" in refuted(shortened)
    assert "40 releases and 39 releases" in str(shortened)
    assert refuted(failed) == {"runs are as long, and end alike"}
    assert "then RuntimeError: too large and 10 releases" in str(failed)


@pytest.mark.slow
def test_a_model_whose_shape_depends_on_the_data_does_not_replay(plan, data):
    """Sums of other shapes are no neighbours at all."""

    def train(model, dataset):
        if len(dataset) == 39:
            model.layers[0].bias = None
        training(plan)(model, dataset)

    report = replay(train, Classifier(), data)

    assert "sums differ by the sensitivity at most" in refuted(report)


def test_sums_that_are_not_numbers_do_not_replay(plan, data):
    """NaN is no distance that is small enough."""
    from dp.audit._replay import _distance  # noqa: PLC0415

    assert _distance([torch.tensor([math.nan])], [torch.zeros(1)]) == math.inf
    assert _distance([torch.zeros(2)], [torch.tensor([3.0, 4.0])]) == 5
    assert plan.steps == 10
    assert len(data) == 40


@pytest.mark.slow
def test_a_replay_of_what_is_not_private_or_always_fails_is_refused(plan, data):
    """The reason is told: it is the training function's own, if it has one."""

    def failing(model, dataset):
        training(plan)(model, dataset)
        raise RuntimeError("always")

    with pytest.raises(dp.PrivacyError, match="no DPOptimizer stepped"):
        replay(lambda *_: None, Classifier(), data)
    with pytest.raises(dp.PrivacyError, match="ZeroDivisionError"):
        replay(lambda *_: 1 / 0, Classifier(), data)
    with pytest.raises(dp.PrivacyError, match="raises on any data: RuntimeError"):
        replay(failing, Classifier(), data)


class FreeBits(nn.Module):
    """A loss in which the batch's mean counts once it is large, as a free-bits loss."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, batch):
        x, _ = batch
        bits = self.layer(x).square()
        mean = float(bits.detach().sum()) / max(1, len(x))
        return bits[:, 0] + (0.0 if mean < 1e3 else mean) * self.layer(x)[:, 0]


@pytest.mark.slow
def test_what_only_an_outlier_opens_does_not_replay(plan):
    """The ordinary last record leaves the gate shut; a thousand times it, open.

    The number has no gradient. Sums differ too much, or a step notices and raises.
    """
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(40, 4), torch.zeros(40))
    loose = changed(plan, max_grad_norm=50.0)
    report = replay(training(loose), FreeBits(), data)

    assert refuted(report, of_outlier=False) == set()
    assert refuted(report)


def test_records_without_floating_point_numbers_have_no_outlier(plan):
    """It is told, and remedied by a neighbour of one's own."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 3)

        def forward(self, batch):
            return self.table(batch[0]).square().sum((1, 2))

    tokens = torch.randint(10, (40, 5))
    report = replay(training(plan), Tokens(), TensorDataset(tokens))

    assert report.ok, str(report)
    assert "not tested: the last record has no floating-point numbers" in str(report)


def test_an_outlier_is_made_of_all_kinds_of_numbers():
    """Nested records of tensors, arrays and numbers; whole numbers stay."""
    record = {
        "x": torch.ones(2),
        "y": (np.ones(1), 0.5),
        "class": torch.tensor(3),
        "n": 2,
    }
    far_out = _WithOutlier([record, record])

    assert far_out.has_outlier
    assert len(far_out) == 2
    assert far_out[0] is record
    assert far_out[1]["x"].tolist() == [1000.0, 1000.0]
    assert (far_out[1]["y"][0].item(), far_out[1]["y"][1]) == (1000.0, 500.0)
    assert (far_out[1]["class"].item(), far_out[1]["n"]) == (3, 2)


@pytest.mark.slow
def test_other_optimizers_are_none_of_the_audits_business(plan, data):
    """Neither plain ones nor private ones of other parameters."""

    def train(model, dataset):
        other = nn.Linear(4, 1)
        loader = plan.loader(dataset)
        private = DPOptimizer(
            torch.optim.SGD(other.parameters(), lr=0.1), plan=plan, loader=loader
        )
        next(iter(loader))
        private.zero_grad()
        weight = nn.Parameter(torch.ones(1))
        weight.grad = torch.ones(1)
        torch.optim.SGD([weight], lr=0.1).step()
        training(plan)(model, dataset)

    report = replay(train, Classifier(), data)

    assert report.ok, str(report)
    assert "10 releases" in str(report)


@pytest.mark.slow
def test_other_threads_keep_keys_of_the_operating_system(plan, data):
    """While a run is replayed, what the host draws elsewhere cannot be predicted.

    Noise of 32 elements is equal in two draws with probability below 2**-100.
    """
    elsewhere, here = [], []

    def draw():
        noise = torch.zeros(32)
        dp.GaussianNoise().add_([noise], stddev=1.0)
        elsewhere.append((noise, poisson_sample(64, sampling_probability=0.5)))

    def train(model, dataset):
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
        here.append(poisson_sample(64, sampling_probability=0.5))
        training(plan)(model, dataset)

    report = replay(train, Classifier(nn.Tanh()), data)

    assert report.ok, str(report)
    assert len(elsewhere) == len(here) == 4
    for one, other in itertools.combinations(elsewhere, 2):
        assert not torch.equal(one[0], other[0])
        assert one[1] != other[1]
    assert here[0] == here[1] == here[2] == here[3]


def test_replayed_keys_end_with_their_context():
    """Outside, and in a thread that was started inside, keys are the system's."""
    inside = []
    for _ in range(2):
        with replayed_keys():
            inside.append([new_key("noise"), new_key("coins"), new_key("noise")])
        assert new_key("noise") not in inside[0]

    assert inside[0] == inside[1]
    assert len(set(inside[0])) == 3
