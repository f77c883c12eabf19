"""Norms and sums are compared with those of torch's own backward pass.

Shapes: ``B`` examples.
"""

import warnings
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.exceptions import SampleMixingError, WrongGradientError
from dp.per_sample import Engine, PerSampleGradients, Verification
from dp.per_sample._isolation import reference
from dp.per_sample._isolation.known_graph import Template
from dp.per_sample._isolation.ordinary_pass import ordinary_sums
from dp.per_sample._parts.part import MaterializedGrads
from dp.per_sample._rules.context import RuleContext


ALWAYS = Verification(every=1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def net(dtype=torch.float32):
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def losses_of(model, B=8, dtype=torch.float32):
    labels = torch.randint(3, (B,))
    outputs = model(torch.randn(B, 12).to(dtype))
    return F.cross_entropy(outputs.float(), labels, reduction="none")


def run(model, losses_B, verification=ALWAYS, num_passes=1, **kwargs):
    engine = Engine(verification=verification)
    for _ in range(num_passes):
        losses = losses_B() if callable(losses_B) else losses_B
        engine.gradients(losses, [*model.parameters()], **kwargs)


def activations_of_another_unit():
    saved = RuleContext.saved

    def changed(self, name):
        value = saved(self, name)
        return value.roll(1, 0) if name == "mat1" else value

    return patch.object(RuleContext, "saved", changed)


def changed_norms(change):
    norms = PerSampleGradients.squared_norms

    def changed(self, *args):
        return torch.stack([change(norms_B) for norms_B in norms(self, *args)])

    return patch.object(PerSampleGradients, "squared_norms", changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("num_examples", [2, 8, 100])
def test_activations_of_another_unit_are_noticed(dtype, num_examples):
    """In every precision: rounding is smaller than an error of every gradient."""
    model = net(dtype)
    losses = losses_of(model, num_examples, dtype)

    with activations_of_another_unit(), pytest.raises(WrongGradientError, match="sum"):
        run(model, losses)


@pytest.mark.parametrize("scale", [1e-10, 1e-15])
def test_they_are_noticed_as_long_as_squares_do_not_vanish(scale):
    """Where gradients are so short that none of them is clipped, too."""
    model = net()
    losses = scale * losses_of(model, 8)

    with activations_of_another_unit(), pytest.raises(WrongGradientError, match="sum"):
        run(model, losses)


def test_one_wrong_gradient_of_many_is_noticed():
    """In float32 the sum of 1000 gradients shows a single one that is wrong."""
    model = net()
    losses = losses_of(model, 1000)
    saved = RuleContext.saved

    def changed(self, name):
        value = saved(self, name)
        if name == "mat1":
            value = torch.cat([value[:1].flip(1), value[1:]])
        return value

    with (
        patch.object(RuleContext, "saved", changed),
        pytest.raises(WrongGradientError, match="sum"),
    ):
        run(model, losses)


@pytest.mark.parametrize("groups", [None, range(4), (0, 0, 1, 1)])
@pytest.mark.parametrize("num_examples", [1, 8])
def test_norms_that_are_too_small_are_noticed_in_every_group(groups, num_examples):
    """However parameters are clipped together, by one percent."""
    model = net()
    losses = losses_of(model, num_examples)

    with (
        changed_norms(lambda norms_B: norms_B * 0.98),
        pytest.raises(WrongGradientError, match=r"norm .* is smaller"),
    ):
        run(model, losses, groups=groups)


def test_norms_that_grow_with_another_units_gradient_are_noticed():
    """None is too small; but by it one unit would decide how far another is clipped."""
    model = net()
    losses = losses_of(model)

    with (
        changed_norms(lambda norms_B: norms_B + norms_B.roll(1, -1)),
        pytest.raises(SampleMixingError, match="powers of two"),
    ):
        run(model, losses)


def test_norms_that_are_too_large_are_no_alarm():
    """They only clip more."""
    model = net()

    with changed_norms(lambda norms_B: norms_B * 4):
        run(model, losses_of(model))


def test_a_norm_of_one_unit_is_noticed_when_that_unit_is_chosen():
    """One of 8 units: in each verification with probability 1 / 8."""
    model = net()

    def too_small(norms_B):
        return torch.cat([norms_B[:-1], norms_B[-1:] / 100])

    with changed_norms(too_small), pytest.raises(WrongGradientError, match="norm"):
        run(model, lambda: losses_of(model), num_passes=300)  # Missed with 4e-18.


def test_a_wrong_gradient_that_began_later_says_so():
    """Releases before may have been wrong as well."""
    model, engine = net(), Engine(verification=ALWAYS)
    engine.gradients(losses_of(model), [*model.parameters()])

    with (
        changed_norms(lambda norms_B: norms_B / 100),
        pytest.raises(WrongGradientError) as caught,
    ):
        engine.gradients(losses_of(model), [*model.parameters()])
    assert caught.value.began_earlier


class Tied(nn.Module):
    """Two uses of one table, of which one is a product."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return F.linear(self.norm(self.words(x)), self.words.weight)


def of_words(model, num_examples, scale):
    x = torch.randint(3, (num_examples, 16))  # Every word many times.
    outputs = model(x).float().flatten(0, 1) * scale
    losses = F.cross_entropy(outputs, x.roll(1, 1).flatten(), reduction="none")
    return losses.view(num_examples, 16).mean(1)


@pytest.mark.parametrize("groups", [None, range(3)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_alarm(dtype, scale, groups):
    """Sums of many terms, at any scale, in any precision."""
    for num_examples in (1, 3, 64):
        model = Tied().to(dtype)
        run(model, of_words(model, num_examples, scale), groups=groups)


def test_gradients_that_cancel_are_no_alarm():
    """What is left of large terms is rounding, of which torch has as much."""
    model = nn.Linear(16, 16)
    x = torch.randn(8, 1, 16).expand(8, 500, 16) + 0
    weights = torch.randn(8, 500, 16)
    weights -= weights.mean(1, keepdim=True)
    asked = []
    own = reference.Reference._own_differences

    def counted(self, weight_U):
        asked.append(weight_U)
        return own(self, weight_U)

    with patch.object(reference.Reference, "_own_differences", counted):
        run(model, (model(x) * weights).sum((1, 2)))
    assert asked


@pytest.mark.slow
def test_what_torch_adds_up_in_16_bits_is_a_warning():
    """Beyond 256 terms of one sign it adds nothing, so a difference says nothing."""
    model = nn.LayerNorm(8).bfloat16()

    def losses():
        outputs = model(torch.randn(2, 20_000, 8).bfloat16())
        return outputs.float().square().mean((1, 2))

    with pytest.warns(UserWarning, match="could not be verified"):
        run(model, losses, num_passes=10)


def test_norms_that_torch_adds_up_in_16_bits_are_a_warning():
    """A norm is as sure as the least sure of its gradients, and is told of once."""
    model, engine = nn.LayerNorm(16).bfloat16(), Engine(verification=ALWAYS)

    def losses():
        return model(torch.randn(4, 3, 16).bfloat16()).float().square().mean((1, 2))

    with changed_norms(lambda n: n / 4), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            engine.gradients(losses(), [*model.parameters()])
    assert [("could not be verified" in str(one.message)) for one in told] == [True]


def test_hooks_on_parameters_are_no_alarm():
    """They change what lands in p.grad, and no private gradient lands there."""
    model, seen = net(), []
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: seen.append(grad) or grad * 3)
    losses = losses_of(model)

    run(model, losses)
    assert not seen
    losses_of(model).sum().backward()
    assert len(seen) == 4


@pytest.mark.parametrize(
    "hook",
    [lambda g: g.clamp(-1e-3, 1e-3), lambda g: g + 1e-3, torch.sign],
    ids=["clamped", "shifted", "signs"],
)
@pytest.mark.parametrize("num_examples", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_passes_that_are_not_linear_are_no_alarm(hook, dtype, num_examples):
    """Weights are then 0 and 1; a hook that adds something leaves 1 alone."""
    model = net(dtype)
    hidden = model[0](torch.randn(num_examples, 12).to(dtype))
    hidden.register_hook(hook)

    run(model, model[1:](hidden).float().square().sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_gradient_of_a_pass_that_is_not_linear(dtype):
    """In 16 bits torch cannot be asked how it rounds then, so nothing is said."""
    model = net(dtype)

    def losses():
        hidden = model[0](torch.randn(8, 12).to(dtype))
        hidden.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
        return model[1:](hidden).float().square().sum(1)

    with activations_of_another_unit():
        if dtype == torch.bfloat16:
            run(model, losses)
            return
        with pytest.raises(WrongGradientError):
            run(model, losses, num_passes=20)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_pass_with_an_example_that_is_not_finite_is_made_up_for(bad):
    """NaN times a weight of 0 is NaN: torch's sum shows nothing, a later one will."""
    model, engine = net(), Engine(verification=Verification(first=1, every=10**9))

    def losses(first):
        x = torch.randn(8, 2, 12)
        x[0, 0, 0] = first
        return model(x).square().sum((1, 2))

    with activations_of_another_unit():
        for _ in range(3):
            engine.gradients(losses(bad), [*model.parameters()])
        with pytest.raises(WrongGradientError):
            engine.gradients(losses(0.0), [*model.parameters()])


def test_what_is_not_finite_stays_out_of_sums():
    """Zero times NaN would be NaN, and tell that one example was there."""
    model, engine = net(), Engine(verification=Verification(first=1, every=1))

    def losses(first):
        x = torch.randn(8, 2, 12)
        x[0, 0, 0] = first
        return model(x).square().sum((1, 2))

    for first in (0.0, torch.nan):
        engine.gradients(losses(first), [*model.parameters()])
    with (
        patch.object(MaterializedGrads, "mask_examples", lambda self, _mask_B: self),
        pytest.raises(SampleMixingError, match="powers of two"),
    ):
        engine.gradients(losses(torch.nan), [*model.parameters()])


@pytest.mark.filterwarnings("ignore:no rule serves")
def test_flags_that_read_the_whole_batch_are_not_noticed():
    """Torch divides by how often the batch looks a row up, here and in its own pass."""
    model = nn.Embedding(5, 3, scale_grad_by_freq=True)
    losses = model(torch.randint(5, (8, 4))).sin().sum((1, 2))

    with patch("dp.per_sample._known_graphs.check_flags"):
        run(model, losses)


def test_a_graph_that_is_taken_for_another_is_noticed():
    """A cache is not believed: at verifications the graph is walked again."""
    model, extra = net(), nn.Linear(12, 3)
    parameters = [*model.parameters(), *extra.parameters()]
    engine = Engine(verification=ALWAYS)

    def losses(*, both):
        x = torch.randn(8, 12)
        return (model(x) + (extra(x) if both else 0 * model(x))).square().sum(1)

    engine.gradients(losses(both=True), parameters)
    bound = Template.bound

    def without_the_last(self, nodes, parameters):
        graph = bound(self, nodes, parameters)
        return type(graph)(
            graph.uses[1:],
            graph.nodes,
            graph.followed,
            graph.assumed,
            graph.constants,
            graph.hiding,
            graph.above,
        )

    with (
        patch.object(Template, "bound", without_the_last),
        pytest.raises(WrongGradientError, match="taken for one that was walked"),
    ):
        engine.gradients(losses(both=True), parameters)


def test_parameters_that_take_no_part_have_sums_of_zero():
    """As torch has no gradient for them."""
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    losses = (torch.arange(6.0).view(2, 3) * used).sum(1)

    first, second = ordinary_sums(losses, [used, unused], torch.tensor([1.0, 2.0]))
    assert first.tolist() == [6.0, 9.0, 12.0]
    assert second.tolist() == [0.0, 0.0]


def test_products_of_fewer_bits_are_no_alarm():
    """If a user permits them to the model, torch's own sums are of fewer bits."""
    kept = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        model = net()
        run(model, losses_of(model, 64))
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = kept
