"""A wrapper of a module is a module, and is seen through."""

import copy
import pickle

import pytest

from forwarding import (
    Forwarded,
    ForwardingError,
    ModuleForwarding,
    chain,
    coverage,
    unwrap,
    verify,
)


torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn


class Thin(ModuleForwarding, nn.Module):
    """Nothing of its own."""


class Averaged(ModuleForwarding, nn.Module):
    """What a person would write for an average of parameters."""

    num_updates: int
    average: nn.Module
    scale: torch.Tensor

    def __init__(self, module):
        super().__init__(module)
        self.num_updates = 0
        self.average = copy.deepcopy(module)
        self.scale = torch.ones(())

    def update(self):
        self.num_updates += 1
        for mine, theirs in zip(
            self.average.parameters(), self.parameters(), strict=True
        ):
            mine.data.lerp_(theirs.data, 1 / self.num_updates)


class Halved(ModuleForwarding, nn.Module):
    """Its own forward."""

    def forward(self, x):
        return self.__wrapped__(x) / 2


KINDS = [Thin, Averaged, Halved]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_depth = pytest.mark.parametrize("depth", [1, 2, 3])


def pickled(module):
    return pickle.loads(pickle.dumps(module))  # noqa: S301


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()


def stack(inner, depth, kind):
    top = inner
    for _ in range(depth):
        top = kind(top)
    return top


@each_kind
@each_depth
def test_building_a_wrapper_changes_nothing(kind, depth):
    """Neither the mode, nor what is registered where."""
    inner = made()
    before = dict(vars(inner)), list(inner.state_dict())
    top = stack(inner, depth, kind)

    assert (dict(vars(inner)), list(inner.state_dict())) == before
    assert top.training is inner.training is False
    assert isinstance(top, nn.Module)
    assert unwrap(top) is inner
    assert len(chain(top)) == depth + 1
    verify(top)


@each_kind
@each_depth
def test_names_and_keys_are_the_modules(kind, depth):
    """At any depth, so that checkpoints go with and without the wrapper."""
    inner = made()
    top = stack(inner, depth, kind)

    assert top.state_dict().keys() == inner.state_dict().keys()
    assert dict(top.named_parameters()) == dict(inner.named_parameters())
    assert dict(top.named_buffers()) == dict(inner.named_buffers())
    assert dict(top.named_children()) == dict(inner.named_children())
    state = {key: torch.zeros_like(value) for key, value in inner.state_dict().items()}
    top.load_state_dict(state)
    assert not inner[0].weight.any()


@each_kind
@each_depth
def test_parameters_buffers_and_modules_are_set_through(kind, depth):
    """Assigned, taken away, put back, registered and deleted."""
    inner = nn.Linear(2, 2)
    top = stack(inner, depth, kind)
    bias = inner.bias
    top.weight = nn.Parameter(torch.zeros(2, 2))
    top.bias = None
    assert inner.weight is top.weight
    assert inner.bias is None
    top.bias = bias
    top.head = nn.Linear(1, 1)
    top.register_buffer("mask", torch.ones(1))
    top.register_parameter("gain", nn.Parameter(torch.ones(1)))
    top.note = "mine"

    assert [*inner.state_dict()] == [
        "weight",
        "bias",
        "gain",
        "mask",
        "head.weight",
        "head.bias",
    ]
    assert (inner.note, inner.bias) == ("mine", bias)
    del top.head, top.mask, top.note
    assert not any(hasattr(inner, name) for name in ("head", "mask", "note"))
    assert not {"weight", "bias", "head", "note"} & vars(top).keys()


def test_a_state_that_is_loaded_into_a_larger_model_reaches_the_module():
    """The wrapper may be a part of a model."""
    inner = made()
    model = nn.ModuleDict({"body": Thin(inner)})
    bare = nn.ModuleDict({"body": made()})
    assert model.state_dict().keys() == bare.state_dict().keys()
    state = {key: torch.ones_like(value) for key, value in bare.state_dict().items()}
    model.load_state_dict(state)
    model.double()

    assert inner[0].weight.dtype == torch.float64
    assert bool((inner[0].weight == 1).all())


@each_depth
def test_own_modules_and_tensors_move_and_switch_along(depth):
    """They are not in the state, and do not stay behind."""
    top = stack(made(), depth, Averaged)
    top.double().train()

    assert top.average.training
    assert top.scale.dtype == torch.float64
    assert {p.dtype for p in top.average.parameters()} == {torch.float64}
    top.update()
    assert top.num_updates == 1
    assert "average.0.weight" not in top.state_dict()


@each_depth
def test_hooks_run_once_on_the_module(depth):
    """Whichever layer they were registered on."""
    inner = nn.Linear(2, 2)
    top = stack(inner, depth, Thin)
    calls = []
    handles = [
        top.register_forward_hook(lambda m, *_: calls.append(("forward", m))),
        top.register_forward_pre_hook(lambda m, *_: calls.append(("before", m))),
        top.register_full_backward_hook(lambda m, *_: calls.append(("backward", m))),
    ]
    top(torch.ones(1, 2, requires_grad=True)).sum().backward()

    assert calls == [("before", inner), ("forward", inner), ("backward", inner)]
    for handle in handles:
        handle.remove()
    top(torch.ones(1, 2))
    assert len(calls) == 3


@each_kind
@each_depth
@pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled])
def test_a_copy_is_whole_and_independent(kind, depth, twin_of):
    """Its parameters are those of its own module, at every layer."""
    inner = made()
    top = stack(inner, depth, kind)
    twin = twin_of(top)
    with torch.no_grad():
        twin.get_parameter("0.weight").zero_()

    assert type(twin) is kind
    assert not unwrap(twin)[0].weight.any()
    assert inner[0].weight.any()
    assert twin(torch.ones(4, 2)).shape == (4, 2)


def test_apply_reaches_the_module_itself():
    """Initialisation by type finds the wrapped layer."""
    inner = nn.Linear(2, 2)
    seen = []
    top = Thin(Thin(inner))

    assert top.apply(seen.append) is top
    assert seen == [inner]


def test_a_new_module_takes_the_place_of_the_old():
    """Its registries come with it."""
    top = Thin(nn.Linear(2, 2))
    top.__wrapped__ = other = nn.Linear(3, 3)

    assert [p.shape for p in top.parameters()] == [p.shape for p in other.parameters()]
    top.weight = nn.Parameter(torch.zeros(3, 3))
    assert not other.weight.any()


def test_an_own_error_is_not_taken_for_a_missing_name():
    """A property of the wrapper that fails says why."""

    class Failing(Thin):
        @property
        def ratio(self):
            return self.__wrapped__.absent

    with pytest.raises(
        AttributeError, match="'Linear' object has no attribute 'absent'"
    ):
        Failing(nn.Linear(1, 1)).ratio  # noqa: B018
    assert not hasattr(Thin.__new__(Thin), "weight")


def test_what_is_wrong_is_told_when_it_is_built():
    """No module inside, or no module base."""

    class NoBase(ModuleForwarding):
        pass

    with pytest.raises(ForwardingError, match="wraps a module, got an object of list"):
        Thin([])
    with pytest.raises(
        ForwardingError, match=r"class NoBase\(ModuleForwarding, torch.nn"
    ):
        NoBase(nn.Linear(1, 1))


def test_every_public_name_is_covered():
    """Those of the layer's own, too."""
    inner = made()

    assert coverage(Thin(inner), inner).complete
    assert {"weight", "in_features"} <= set(dir(Thin(nn.Linear(1, 1))))


def test_further_names_are_declared_as_in_every_wrapper():
    """Special methods, say."""

    class Indexed(Thin):
        __getitem__ = Forwarded()
        __len__ = Forwarded()

    inner = made()

    assert Indexed(inner)[0] is inner[0]
    assert len(Indexed(inner)) == 2


@each_kind
@each_depth
def test_the_compiler_traces_it_without_a_break(kind, depth):
    """Around, and inside."""
    inner = made()
    top = stack(inner, depth, kind)
    x = torch.randn(4, 2)
    compiled = torch.compile(top, fullgraph=True, backend="eager")
    around = stack(torch.compile(inner, fullgraph=True, backend="eager"), depth, Thin)

    assert torch.allclose(compiled(x), top(x))
    assert torch.allclose(around(x), inner(x))
    assert around.state_dict().keys() == {
        f"_orig_mod.{key}" for key in inner.state_dict()
    }
    assert compiled.training is top.training
    torch.compiler.reset()


@pytest.fixture
def one_rank(tmp_path):
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@each_depth
@pytest.mark.parametrize("around", [True, False], ids=["around", "inside"])
def test_it_goes_with_distributed_data_parallel(depth, around):
    """Gradients arrive; keys are those that the parallel module gives."""
    inner = nn.Linear(2, 2)
    parallel = nn.parallel.DistributedDataParallel
    if around:
        model = parallel(stack(inner, depth, Thin))
    else:
        model = stack(parallel(inner), depth, Thin)
    model(torch.ones(1, 2)).sum().backward()

    assert inner.weight.grad is not None
    assert list(model.state_dict()) == ["module.weight", "module.bias"]


@pytest.mark.usefixtures("one_rank")
@each_depth
@pytest.mark.parametrize("around", [True, False], ids=["around", "inside"])
def test_it_goes_with_fully_sharded_data_parallel(depth, around):
    """``fully_shard`` swaps the class of what it is given, and its parameters."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    inner = made()
    x = torch.ones(4, 2)
    expected = inner(x).detach()
    if around:
        model = fsdp.fully_shard(stack(inner, depth, Thin), mesh=mesh)
    else:
        model = stack(fsdp.fully_shard(inner, mesh=mesh), depth, Thin)
    out = model(x)
    out.sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert torch.allclose(out, expected)
    assert model.state_dict().keys() == made().state_dict().keys()
    assert type(inner[0].weight).__name__ == "DTensor"
    assert inner[0].weight.grad is not None


@each_depth
def test_a_method_of_the_module_that_is_replaced_is_replaced_on_the_layer(depth):
    """As for every wrapper: methods belong to the layer."""

    class Encoder(nn.Linear):
        def encode(self, x):
            return self(x)

    inner = Encoder(2, 2)
    top = stack(inner, depth, Thin)
    top.encode = lambda _: "patched"

    assert top.encode(1) == "patched"
    assert torch.equal(inner.encode(torch.ones(2)), inner(torch.ones(2)))
    del top.encode
    assert torch.equal(top.encode(torch.ones(2)), inner(torch.ones(2)))


def test_a_name_of_the_layer_itself_can_be_deleted():
    """It is not looked for in the module."""
    top = Averaged(nn.Linear(1, 1))
    del top.average

    assert not hasattr(top, "average")
    assert hasattr(top, "weight")
