"""An optimizer that wraps another is, from outside, the one that it wraps."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from dp.optimizer._transparent import TransparentOptimizer


class Layer(TransparentOptimizer):
    """The least that a transparent optimizer can be."""


class Knobbed(SGD):
    """An optimizer with data and methods that torch knows nothing of."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.knob = 1
        self.mode = None

    def add_param_group(self, param_group):
        super().add_param_group({**param_group, "added_by": "the owner"})

    @property
    def doubled(self):
        return 2 * self.knob

    @doubled.setter
    def doubled(self, value):
        self.knob = value / 2

    def train(self):
        self.mode = "train"


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- our own bytes


def stack(inner, depth):
    outer = inner
    for _ in range(depth):
        outer = Layer(outer)
    return outer


@pytest.fixture(params=[1, 2, 3])
def layers(request):
    inner = Knobbed([nn.Parameter(torch.zeros(2))])
    return inner, stack(inner, request.param)


@pytest.mark.parametrize("name", ["param_groups", "state", "defaults"])
def test_declared_data_is_read_written_and_deleted_on_the_owner(layers, name):
    """Get, set and delete at any depth act on the innermost optimizer."""
    inner, outer = layers
    assert getattr(outer, name) is getattr(inner, name)

    setattr(outer, name, replaced := getattr(inner, name).copy())
    assert getattr(inner, name) is replaced

    delattr(outer, name)
    assert not hasattr(inner, name)
    assert name not in vars(outer)


def test_groups_may_be_replaced_in_place(layers):
    """DeepSpeed assigns slices, ZeRO entries; the update reads what they wrote."""
    inner, outer = layers
    weight = nn.Parameter(torch.zeros(1))
    outer.param_groups[:] = [{**outer.param_groups[0], "params": [weight], "lr": 0.5}]
    weight.grad = torch.ones(1)
    outer.step()
    outer.param_groups[0]["params"][0] = other = nn.Parameter(torch.zeros(1))

    assert weight.item() == -0.5
    assert inner.param_groups[0]["params"] == [other]


@pytest.mark.parametrize("loaded", ["inner", "outer"])
def test_a_state_may_be_loaded_at_either_end(layers, loaded):
    """Loading rebinds ``param_groups`` and ``state``; both ends see the new ones."""
    inner, outer = layers
    outer.state[outer.param_groups[0]["params"][0]] = {"seen": torch.ones(1)}
    state = {"inner": inner, "outer": outer}[loaded].state_dict()
    state["param_groups"][0]["lr"] = 0.75
    {"inner": inner, "outer": outer}[loaded].load_state_dict(state)

    assert outer.param_groups is inner.param_groups
    assert outer.state is inner.state
    assert outer.param_groups[0]["lr"] == 0.75
    assert [s["seen"].item() for s in outer.state.values()] == [1.0]


def test_data_that_only_the_owner_has_is_reached(layers):
    """A knob of one optimizer class needs no declaration."""
    inner, outer = layers
    outer.knob = 5
    outer.doubled = 8
    outer.train()

    assert (inner.knob, outer.knob, inner.mode) == (4, 4, "train")
    assert "knob" not in vars(outer)
    del outer.knob
    assert not hasattr(inner, "knob")


def test_an_error_in_a_property_of_a_layer_is_not_taken_for_a_missing_name():
    """What the user sees is what went wrong, not that the owner lacks the name."""

    class Broken(Layer):
        @property
        def progress(self):
            raise AttributeError("inside progress")

    with pytest.raises(AttributeError, match="inside progress"):
        Broken(Knobbed([nn.Parameter(torch.zeros(2))])).progress  # noqa: B018


def test_data_that_nobody_has_stays_on_the_layer(layers):
    """A new attribute is this layer's own, to set and to delete."""
    inner, outer = layers
    outer.mine = 1
    del outer.mine
    outer.mine = 2

    assert not hasattr(inner, "mine")
    assert vars(outer)["mine"] == 2


def test_a_patched_method_stays_where_it_was_set(layers):
    """Forwarded, ``optimizer.step = f`` would make the inner step call itself."""
    inner, outer = layers
    with mock.patch.object(outer, "train", return_value="patched"):
        assert outer.train() == "patched"
        assert inner.mode is None
    with mock.patch.object(outer, "step", return_value="patched"):
        assert outer.step() == "patched"
        assert "step" not in vars(inner)

    assert "step" not in vars(outer)


def test_marks_of_a_gradient_scaler_stay_on_the_layer(layers):
    """On a fused inner optimizer they would make it unscale a second time."""
    inner, outer = layers
    inner.grad_scale = None
    outer.grad_scale = torch.ones(1)

    assert inner.grad_scale is None


def test_a_missing_attribute_is_missing(layers):
    """``hasattr`` and ``dir`` agree with the owner."""
    inner, outer = layers

    assert not hasattr(outer, "no_such_thing")
    assert {"knob", "train", "param_groups", "original_optimizer"} <= set(dir(outer))
    assert hasattr(outer, "doubled")
    assert repr(inner) in repr(outer)


def test_a_half_built_layer_says_what_is_missing():
    """Between ``__new__`` and ``__init__`` nothing recurses and nothing is stored."""
    half = Layer.__new__(Layer)

    for name in ("param_groups", "anything", "original_optimizer", "__deepcopy__"):
        assert not hasattr(half, name)
    with pytest.raises(AttributeError, match="original_optimizer"):
        half.param_groups = []
    assert vars(half) == {}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", ["step_pre", "step_post"])
def test_step_hooks_fire_once_with_the_object_they_were_registered_on(depth, kind):
    """A hook of the outermost layer sees that layer, once a step."""
    outer = stack(SGD([nn.Parameter(torch.zeros(2))], lr=0.1), depth)
    seen = []
    handle = getattr(outer, f"register_{kind}_hook")(lambda o, *_: seen.append(o))

    outer.step()
    handle.remove()
    outer.step()

    assert seen == [outer]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_state_hooks_fire_once_and_may_replace_the_state(depth):
    """All four of them, with this layer's object."""
    outer = stack(SGD([nn.Parameter(torch.zeros(2))], lr=0.1), depth)
    seen = []

    def note(name, replacement=None):
        def hook(optimizer, *_):
            seen.append((name, optimizer))
            return replacement

        return hook

    outer.register_state_dict_pre_hook(note("save"))
    outer.register_state_dict_post_hook(note("saved"))
    state = outer.state_dict()
    state["param_groups"][0]["lr"] = 0.5
    outer.register_load_state_dict_pre_hook(note("load", state))
    outer.register_load_state_dict_post_hook(note("loaded"))
    outer.load_state_dict({})

    assert seen == [(name, outer) for name in ("save", "saved", "load", "loaded")]
    assert outer.param_groups[0]["lr"] == 0.5


def test_a_state_hook_may_return_another_state():
    """Torch lets a post hook replace what ``state_dict`` returns."""
    outer = Layer(SGD([nn.Parameter(torch.zeros(2))], lr=0.1))
    outer.register_state_dict_post_hook(lambda _, __: {"replaced": True})

    assert outer.state_dict() == {"replaced": True}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_copies_are_whole_and_independent(depth):
    """A copy shares the owner; deepcopy and pickle do not, and nothing is poisoned."""
    outer = stack(Adam([nn.Parameter(torch.ones(2))], lr=0.1), depth)
    StepLR(outer, 1)

    shallow = copy.copy(outer)
    shallow.param_groups[0]["lr"] = 0.25
    assert outer.param_groups[0]["lr"] == 0.25
    for twin in (copy.deepcopy(outer), pickled(outer)):
        twin.param_groups[0]["lr"] = 0.75
        twin.param_groups[0]["params"][0].grad = torch.ones(2)
        twin.step()
        assert twin.param_groups[0]["params"][0].ne(1).all()
    assert outer.param_groups[0]["lr"] == 0.25
    assert outer.param_groups[0]["params"][0].eq(1).all()


def test_a_failed_copy_poisons_nothing():
    """The next step, of this and of every other layer, works as before."""
    outer = Layer(SGD([nn.Parameter(torch.zeros(1))], lr=0.5))
    outer.state["uncopyable"] = (i for i in ())

    with pytest.raises(TypeError):
        copy.deepcopy(outer)

    outer.param_groups[0]["params"][0].grad = torch.ones(1)
    outer.step()
    assert outer.param_groups[0]["params"][0].item() == -0.5


def test_zero_grad_and_new_groups_reach_the_owner(layers):
    """Also with the argument names that accelerate inspects."""
    inner, outer = layers
    added = nn.Parameter(torch.zeros(1))
    added.grad = torch.ones(1)
    outer.add_param_group({"params": [added]})
    outer.zero_grad(set_to_none=False)

    assert inner.param_groups[-1]["params"] == [added]
    assert inner.param_groups[-1]["added_by"] == "the owner"
    assert added.grad.item() == 0


def test_a_state_has_torchs_keys():
    """Who reads ``__getstate__`` of an optimizer finds its groups and its state."""
    inner = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    outer = TransparentOptimizer(inner)
    state = outer.__getstate__()

    assert set(inner.__getstate__()) <= set(state)
    assert state["param_groups"] is inner.param_groups
    assert state["state"] is inner.state
    twin = pickled(outer)
    assert "param_groups" not in vars(twin)
    assert twin.param_groups is twin.original_optimizer.param_groups
