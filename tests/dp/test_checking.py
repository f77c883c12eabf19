"""What ``dp.check`` finds, what it leaves alone, and that it leaves no trace."""

import copy
import random
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

import dp
from dp.checking import Problem
from dp.checking._batches import some_of
from dp.per_sample import Engine
from dp.per_sample._parts.part import MaterializedGrads


class Pair(NamedTuple):
    x: torch.Tensor
    y: Any


B, CLASSES = 6, 3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    return torch.randn(B, 4), torch.tensor([0, 1, 2, 2, 2, 1])


def classifier(*layers):
    return nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, CLASSES))


def cross_entropy(model, batch):
    x, y_B = batch
    return F.cross_entropy(model(x), y_B, reduction="none")


def found(report, severity="error"):
    return [problem.name for problem in report.of(severity)]


def test_a_sound_model_passes(batch):
    """No error, no warning, no note; and the report says how much was compared."""
    report = dp.check(classifier(nn.Tanh()), cross_entropy, batch)

    assert report.ok
    assert report.problems == ()
    assert str(report) == "dp.check: nothing found (6 examples compared)"
    report.raise_if_failed()


def test_dropout_is_no_mixing(batch):
    """Random numbers differ from batch to batch; examples still do not meet."""
    report = dp.check(classifier(nn.Dropout(0.5)), cross_entropy, batch)

    assert report.problems == ()


def weighted_mean(model, batch):
    x, y_B = batch
    weights = torch.tensor([0.1, 1.0, 9.0])
    losses_B = F.cross_entropy(model(x), y_B, weights, reduction="none")
    return losses_B / weights[y_B].sum()


def mean_of_those_counted(model, batch):
    x, y_B = batch
    losses_B = F.cross_entropy(model(x), y_B, ignore_index=2, reduction="none")
    return losses_B / (y_B != 2).sum().clamp(min=1)


def divided_by_batch_size(model, batch):
    return cross_entropy(model, batch) / len(batch[0])


def contrastive(model, batch):
    similarity_BB = model(batch[0]) @ model(batch[0]).T
    return F.cross_entropy(similarity_BB, torch.arange(B), reduction="none")


class WithCapacity(nn.Module):
    """Each class has room for two examples; who comes late is dropped."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x):
        logits = self.linear(x)
        chosen_BE = F.one_hot(x[:, 0].sign().long().clamp(min=0), 2)
        place_B = (chosen_BE.cumsum(0) * chosen_BE).sum(1)
        return logits * (place_B <= 2)[:, None]


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("model", "loss_fn"),
    [
        (classifier(), weighted_mean),
        (classifier(), mean_of_those_counted),
        (classifier(), divided_by_batch_size),
        (classifier(nn.Dropout(0.5)), divided_by_batch_size),
        (WithCapacity(), cross_entropy),
        (classifier(Centred()), cross_entropy),
        (classifier(nn.BatchNorm1d(8)), cross_entropy),
        (classifier(nn.BatchNorm1d(8, track_running_stats=False)), cross_entropy),
    ],
    ids=[
        "class weights",
        "ignored targets",
        "batch size",
        "batch size and dropout",
        "capacity",
        "batch mean",
        "batch norm",
        "batch norm without statistics",
    ],
)
def test_mixed_examples_are_found(batch, model, loss_fn):
    """Whether the mixing carries gradients or not."""
    report = dp.check(model, loss_fn, batch)

    assert "examples are mixed" in found(report)
    with pytest.raises(dp.PrivacyError, match="examples are mixed"):
        report.raise_if_failed()


def test_a_contrastive_loss_is_found(batch):
    """Every example is compared with every other one."""
    report = dp.check(classifier(), contrastive, batch)

    assert "examples are mixed" in found(report)


def test_batch_norm_is_named_with_its_statistics(batch):
    """The remedy says which module; the buffers that it updates are listed."""
    text = dp.check(classifier(nn.BatchNorm1d(8)), cross_entropy, batch).to_text()

    assert "1 (BatchNorm1d)" in text
    assert "1.running_mean, 1.running_var" in text
    assert "not compared alone" not in text


def test_batch_norm_in_eval_mode_is_sound(batch):
    """Fixed statistics mix nothing and change nothing."""
    model = classifier(nn.BatchNorm1d(8)).eval()
    report = dp.check(model, cross_entropy, batch)

    assert report.ok
    assert found(report, "warning") == []


class Counting(nn.Module):
    """Keeps a running mean that is made anew, and one that appears late."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        self.register_buffer("latest", x[0])
        return self.linear(x)


def test_a_buffer_that_is_replaced_is_found_and_put_back(batch):
    """Also if the forward pass binds another tensor to its name."""
    model = Counting()
    mean = model.mean

    report = dp.check(model, cross_entropy, batch)

    assert found(report) == ["state changed by the forward pass"]
    assert "mean, latest changed" in report.to_text()
    assert model.mean is mean
    assert not mean.any()
    assert not hasattr(model, "latest")


class Shrinking(nn.Linear):
    """Changes its weight whenever it is used."""

    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(0.5)
        return super().forward(x)


def test_a_weight_that_the_forward_pass_changes_is_found_and_put_back(batch):
    """Only a step may change what is trained."""
    model = Shrinking(4, CLASSES)
    before = model.weight.clone()

    report = dp.check(model, cross_entropy, batch)

    assert "weight changed" in report.to_text()
    assert torch.equal(model.weight, before)


def test_nothing_of_the_model_or_the_generators_changes(batch):
    """Buffers, weights, gradients, modes, and random numbers to come."""
    model = classifier(nn.BatchNorm1d(8), nn.Dropout(0.5))
    model[2].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model)

    def draws():
        return torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002, S311

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    expected = draws()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    dp.check(model, cross_entropy, batch)

    assert draws() == expected
    assert [m.training for m in model.modules()] == [
        m.training for m in before.modules()
    ]
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    for parameter in model.parameters():
        assert torch.equal(parameter.grad, torch.ones_like(parameter))


@pytest.mark.parametrize(
    ("loss_fn", "said"),
    [
        (lambda m, b: cross_entropy(m, b).mean(), r"shape \(\)"),
        (lambda m, b: m(b[0]), r"shape \(6, 3\)"),
        (lambda *_: 3.0, "a float"),
        (lambda m, b: m(b[0]).argmax(1), "torch.int64"),
        (lambda m, b: cross_entropy(m, b).detach(), "does not depend"),
    ],
    ids=["mean", "matrix", "number", "integers", "detached"],
)
def test_losses_must_be_one_an_example(batch, loss_fn, said):
    """What else a loss function may return, and what to do about it."""
    report = dp.check(classifier(), loss_fn, batch)

    assert found(report) == ["losses"]
    with pytest.raises(dp.PrivacyError, match=said):
        report.raise_if_failed()


def test_a_frozen_model_has_nothing_to_train(batch):
    """No parameter requires gradients."""
    model = classifier().requires_grad_(False)  # noqa: FBT003 -- torch's signature

    assert found(dp.check(model, cross_entropy, batch)) == ["nothing to train"]


def test_one_example_is_too_few(batch):
    """Whether examples are mixed cannot be seen on one."""
    with pytest.raises(ValueError, match="at least 2 examples"):
        dp.check(classifier(), cross_entropy, (batch[0][:1], batch[1][:1]))


def test_parameters_that_no_loss_reaches_are_named(batch):
    """They would be trained on noise."""
    model = classifier()
    model.unused = nn.ModuleList([nn.Linear(1, 1) for _ in range(5)])
    report = dp.check(model, lambda m, b: cross_entropy(m[:2], b), batch)

    assert report.ok
    assert found(report, "warning") == ["parameters without gradients"]
    assert "unused.3.bias and 2 more" in report.to_text()


def test_low_precision_is_named(batch):
    """Parameters of 16 bits, or losses of 16 bits from parameters of 32."""
    x, y_B = batch
    narrow = dp.check(classifier().bfloat16(), cross_entropy, (x.bfloat16(), y_B))
    losses = dp.check(classifier(), lambda m, b: cross_entropy(m, b).half(), batch)

    assert found(narrow, "warning") == ["low precision"]
    assert "0.weight" in narrow.to_text()
    assert found(losses, "warning") == ["low precision"]
    assert narrow.ok


def test_complex_parameters_are_refused(batch):
    """Noise is defined for real numbers."""
    model = classifier()
    model.phase = nn.Parameter(torch.ones(1, dtype=torch.complex64))

    report = dp.check(
        model, lambda m, b: cross_entropy(m[:2], b) * m.phase.abs(), batch
    )

    assert "complex parameters" in found(report)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_counted(batch, poison):
    """They contribute nothing, which is safe and probably not what was meant."""
    batch[0][2] = poison

    report = dp.check(classifier(), cross_entropy, batch)

    assert found(report, "warning") == ["losses that are not finite"]
    assert "1 of 6 losses" in report.to_text()


class Scaled(nn.Module):
    """Multiplies by the exponential of a parameter: no rule serves it."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return torch.pow(x.abs() + 1, self.log_scale)


def test_an_operation_without_a_rule_is_a_note(batch):
    """It is right and slow, and has a name."""
    report = dp.check(classifier(Scaled()), cross_entropy, batch)

    assert report.ok
    assert found(report, "note") == ["slow operation"]
    assert "PowBackward1" in report.to_text()


def test_wrong_gradients_are_an_error(batch, monkeypatch):
    """A rule that errs for the model is found before training."""
    norms = MaterializedGrads.squared_norms
    monkeypatch.setattr(
        MaterializedGrads, "squared_norms", lambda self: norms(self) / 100
    )
    report = dp.check(nn.Linear(4, 3), cross_entropy, batch)

    assert found(report, "error") == ["wrong gradients"]
    assert "torch's own" in report.problems[0].detail


def test_what_16_bits_leave_unverified_is_a_note(batch, monkeypatch):
    """Whether torch adds up so coarsely that nothing can be said depends on the data."""
    gradients = Engine.gradients

    def unsure(*args, **kwargs):
        warnings.warn("gradients could not be verified", stacklevel=1)
        return gradients(*args, **kwargs)

    monkeypatch.setattr(Engine, "gradients", unsure)
    report = dp.check(classifier(nn.Tanh()), cross_entropy, batch)

    assert found(report, "note") == ["gradients not verified"]


def test_an_operation_that_spreads_poison_is_an_error(batch):
    """Where NaN in one example reaches the others' gradients, a step would raise."""
    batch[0][0] = float("nan")

    report = dp.check(classifier(Scaled()), cross_entropy, batch)

    assert "unsupported operation" in found(report)


def test_a_model_that_fails_on_an_empty_batch_is_a_warning(batch):
    """Poisson sampling draws one sooner or later; the step is due all the same."""

    def loss_fn(model, batch):
        return cross_entropy(model, batch) + 0 * batch[0].max()

    report = dp.check(classifier(), loss_fn, batch)

    assert found(report, "warning") == ["empty batch"]


def test_losses_of_an_empty_batch_must_be_empty(batch):
    """A vector of one NaN, say, is one loss too many."""

    def loss_fn(model, batch):
        losses_B = cross_entropy(model, batch)
        return losses_B if len(losses_B) else model(torch.zeros(1, 4)).sum(1)

    report = dp.check(classifier(), loss_fn, batch)

    assert found(report, "warning") == ["empty batch"]
    assert "shape (1,)" in report.to_text()


def test_a_loss_that_is_random_in_every_mode_is_not_compared_alone(batch):
    """The report says what it could not see."""

    def loss_fn(model, batch):
        return cross_entropy(model, (batch[0] + torch.randn_like(batch[0]), batch[1]))

    report = dp.check(classifier(), loss_fn, batch)

    assert report.ok
    assert found(report, "warning") == ["not compared alone"]


def test_a_model_that_takes_no_single_example_is_not_compared_alone(batch):
    """As above; the model's own words are quoted."""

    def loss_fn(model, batch):
        if len(batch[0]) == 1:
            raise RuntimeError("two at least")
        return cross_entropy(model, batch)

    report = dp.check(classifier(), loss_fn, batch)

    assert found(report, "warning") == ["not compared alone"]
    assert "RuntimeError: two at least" in report.to_text()


def test_only_some_examples_are_compared_if_asked():
    """The first, the last and some between."""
    big = torch.randn(50, 4), torch.randint(CLASSES, (50,))

    assert dp.check(classifier(), cross_entropy, big).num_compared == 8
    assert dp.check(classifier(), cross_entropy, big, num_compared=1).num_compared == 1
    with pytest.raises(ValueError, match="num_compared must be"):
        dp.check(classifier(), cross_entropy, big, num_compared=0)


def test_a_custom_batch_type_needs_take(batch):
    """Whatever a batch is, the caller can say what some of its examples are."""

    class Opaque:
        def __init__(self, x, y_B):
            self.x, self.y_B = x, y_B

    def loss_fn(model, batch):
        return cross_entropy(model, (batch.x, batch.y_B))

    def take(batch, positions):
        chosen = torch.tensor(positions, dtype=torch.int64)
        return Opaque(batch.x[chosen], batch.y_B[chosen])

    report = dp.check(classifier(), loss_fn, Opaque(*batch), take=take)
    assert [problem.name for problem in report.problems] == ["no outliers"]
    assert not dp.check(
        classifier(), lambda m, b: loss_fn(m, b) / len(b.x), Opaque(*batch), take=take
    ).ok


@dataclass
class Sentence:
    ids: torch.Tensor
    language: str = "en"


def test_examples_are_taken_out_of_any_container():
    """Tensors, arrays, mappings, sequences, named tuples, dataclasses, constants."""
    x = torch.arange(6).view(3, 2)
    batch = {
        "time first": x.T,
        "array": x.numpy(),
        "pair": Pair(x, "constant"),
        "words": ["a", "b", "c"],
        "sentence": Sentence(x),
        "scale": 2.0,
        "list": [x, x],
        "classes": torch.ones(7),
    }

    taken = some_of(batch, [2, 0], num_examples=3)

    assert taken["time first"].tolist() == [[4, 0], [5, 1]]
    assert taken["array"].tolist() == [[4, 5], [0, 1]]
    assert taken["pair"].x.tolist() == [[4, 5], [0, 1]]
    assert taken["pair"].y == "constant"
    assert taken["words"] == ["c", "a"]
    assert taken["sentence"].ids.tolist() == [[4, 5], [0, 1]]
    assert taken["sentence"].language == "en"
    assert taken["scale"] == 2.0
    assert [len(part) for part in taken["list"]] == [2, 2]
    assert taken["classes"].shape == (7,)


def test_a_report_lists_errors_first():
    """And every line says what to do."""
    problems = [
        Problem(severity=severity, name="n", detail="d", remedy="r")
        for severity in ("note", "error", "warning", "error")
    ]
    report = dp.CheckReport(problems=tuple(problems), num_compared=2)

    text = report.to_text()

    assert text.startswith("dp.check: 2 errors, 1 warning, 1 note")
    assert text.index("error ") < text.index("warning  ") < text.index("note  ")
    assert text.count("do: r") == 4


def standardised(model, batch):
    x, y_B = batch
    return F.cross_entropy(model((x - x.mean(0)) / x.std(0)), y_B, reduction="none")


def over_a_detached_deviation(model, batch):
    x, y_B = batch
    hidden = model[0](x)
    return F.cross_entropy(
        model[1:](hidden / hidden.std(0).detach()), y_B, reduction="none"
    )


@pytest.mark.parametrize("loss_fn", [standardised, over_a_detached_deviation])
def test_finite_against_not_finite_is_a_difference(batch, loss_fn):
    """Copies of one example have a deviation of 0, and an example alone has none."""
    report = dp.check(classifier(), loss_fn, batch)

    assert "examples are mixed" in found(report)


def test_a_gradient_that_is_finite_in_company_alone_is_a_difference(batch):
    """The losses are the same with and without the others; the gradients are not."""

    def root_if_alone_is_of_zero(model, batch):
        x, _ = batch
        hidden = model[0](x)
        has_company = float(len(x) > 1)
        return (
            cross_entropy(model, batch)
            + 0 * (hidden[:, 0].square() * has_company).sqrt()
        )

    report = dp.check(classifier(), root_if_alone_is_of_zero, batch)

    assert "examples are mixed" in found(report)


@pytest.mark.parametrize("loss_fn", [cross_entropy, standardised])
def test_anomaly_detection_changes_nothing(batch, loss_fn):
    """What is not finite is looked for; torch would raise at the first of it."""
    plain = dp.check(classifier(), loss_fn, batch)
    with torch.autograd.set_detect_anomaly(True):
        report = dp.check(classifier(), loss_fn, batch)
        assert torch.is_anomaly_enabled()

    assert found(report) == found(plain)


def clamped_penalty(model, batch):
    """Free bits: the penalty over the batch is closed until it is large."""
    penalty = batch[0].square().mean().clamp(min=50.0)
    return cross_entropy(model, batch) * penalty


def skipped_if_one_is_tiny(model, batch):
    x, _ = batch
    smallest = x.norm(dim=1).min()
    return cross_entropy(model, batch) * (2.0 if smallest < 1e-3 else 1.0)


def probabilities(model, batch):
    """Targets beyond 1 raise, so the data alone can be multiplied."""
    x, target_B = batch
    rows = model(x / x.abs().max().clamp(min=100.0))[:, 0]
    return F.binary_cross_entropy(rows.sigmoid(), target_B, reduction="none")


@pytest.mark.parametrize("loss_fn", [clamped_penalty, skipped_if_one_is_tiny])
def test_outliers_open_gates_that_the_batch_leaves_closed(batch, loss_fn):
    """What no exchange of ordinary examples shows."""
    assert "examples are mixed" in found(dp.check(classifier(), loss_fn, batch))


def test_data_becomes_an_outlier_where_targets_cannot(batch):
    """What raises is left as it is; numpy arrays are multiplied as tensors are."""
    x, target_B = batch[0], torch.rand(B)
    assert "examples are mixed" in found(
        dp.check(classifier(), probabilities, (x, target_B))
    )

    def of_arrays(model, batch):
        return probabilities(model, [torch.as_tensor(part) for part in batch])

    arrays = x.numpy(), target_B.numpy()
    assert "examples are mixed" in found(dp.check(classifier(), of_arrays, arrays))


def test_whole_numbers_have_no_outliers(batch):
    """The report says so, in a note: nothing is wrong."""

    def loss_fn(model, batch):
        return cross_entropy(model, (F.one_hot(batch[0], 4).float(), batch[1]))

    report = dp.check(
        classifier(), loss_fn, (torch.tensor([0, 1, 2, 3, 0, 1]), batch[1])
    )

    assert report.ok
    assert [p.name for p in report.problems] == ["no outliers"]


def test_numbers_that_no_multiple_fits_are_left():
    """As where every part must stay in a range."""

    def loss_fn(model, batch):
        if not bool((batch[0] <= 1).all() and (batch[1] >= 1).all()):
            raise ValueError("out of range")
        return model(batch[0]).square().sum(1) * batch[1]

    report = dp.check(classifier(), loss_fn, (torch.rand(B, 4), torch.ones(B)))

    assert "no outliers" not in [
        p.name for p in report.problems
    ]  # 1e-4 fits the first.

    def strict(model, batch):
        x = torch.cat(batch["x"], 1)
        if not bool((x.abs() < 1).all() and (x.abs() > 0.001).all()):
            raise ValueError("out of range")
        return model(batch["x"][0]).square().sum(1) * batch["scale"]

    halves = torch.full((B, 4), 0.5)
    for parts in (1, 4):
        report = dp.check(classifier(), strict, {"x": [halves] * parts, "scale": 2.0})
        assert [p.name for p in report.of("note")] == ["no outliers"]


def test_an_outlier_that_overflows_is_made_smaller(batch):
    """Losses stay finite, so that the others can be compared."""

    def loss_fn(model, batch):
        return cross_entropy(model, batch) + batch[0].exp().sum(1)

    assert dp.check(classifier(), loss_fn, batch).problems == ()


def test_gradients_that_an_outlier_spoils_are_left_if_the_losses_agree(batch):
    """Zero times infinity in another example's rows is torch's, and no mixing."""

    def loss_fn(model, batch):
        rows = model(batch[0] * 1e36).sum(1)
        return rows.clamp(-1e38, 1e38).tanh()

    assert found(dp.check(classifier(), loss_fn, batch)) == []


def mean_over_examples(model, batch):
    return (model(batch[0]) - 1).square().mean(0)


@pytest.mark.parametrize("size", [B, 3])
def test_losses_along_another_axis_are_not_the_examples(size):
    """A vector of features passes for examples where it is as long, or where it is not."""
    torch.manual_seed(0)
    model = nn.Linear(4, B)
    report = dp.check(
        model, mean_over_examples, (torch.randn(size, 4), torch.ones(size))
    )

    assert found(report) == ["losses"]
    assert report.num_compared == 0


def test_what_has_no_finite_gradient_is_no_all_clear(batch):
    """Nothing was compared, and the report says that."""

    def nowhere(model, batch):
        return model(batch[0]).sum(1).mul(0).sqrt()

    report = dp.check(classifier(), nowhere, batch)

    assert found(report) == ["nothing compared"]


def test_examples_without_finite_gradients_are_counted(batch):
    """The others are compared."""

    def root_at_zero(model, batch):
        return model(batch[0]).sum(1).mul(batch[0][:, 0]).sqrt()

    x = batch[0].abs() + 0.1
    x[2] = 0.0
    model = nn.Linear(4, CLASSES)
    nn.init.constant_(model.weight, 1.0)
    report = dp.check(model, root_at_zero, (x, batch[1]))
    assert "not all compared" in [p.name for p in report.of("warning")]
    assert "examples are mixed" not in found(report)

    def over_batch_size(model, batch):
        return root_at_zero(model, batch) / len(batch[0])

    assert "examples are mixed" in found(
        dp.check(model, over_batch_size, (x, batch[1]))
    )
    report = dp.check(model, root_at_zero, (x, batch[1]), num_compared=2)
    assert "not all compared" not in [p.name for p in report.of("warning")]


def test_examples_whose_losses_are_not_finite_do_not_spoil_the_others(batch):
    """They are taken out of the batch, so that the rest can be compared."""
    x = batch[0].clone()
    x[1] = float("nan")

    assert "examples are mixed" in found(
        dp.check(classifier(), divided_by_batch_size, (x, batch[1]))
    )
    report = dp.check(classifier(), cross_entropy, (x, batch[1]))
    assert "examples are mixed" not in found(report)
    assert report.num_compared == B - 1


def test_a_gradient_that_overflows_is_counted():
    """It is so wherever its example is, and spoils no other one's."""
    model = nn.Linear(4, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x, scale_B = torch.ones(B, 4), torch.ones(B)
    x[-1], scale_B[-1] = 1e10, 1e30

    def loss_fn(model, batch):
        return model(batch[0])[:, 0] * batch[1]

    report = dp.check(model, loss_fn, (x, scale_B), num_compared=2)

    assert report.ok
    assert "not all compared" in [p.name for p in report.of("warning")]
