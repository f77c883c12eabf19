"""A base ``__init__`` that writes forwarded names does not overwrite the owner."""

import pytest
from hypothesis import given, strategies as st

from forwarding import Forwarded, Forwarding, preserved


class Base:
    def __init__(self, **values):
        vars(self).update(values)
        self.lr = 0.0
        self.state = {}
        del self.groups
        self.made = "by init"


class Owner:
    def __init__(self, **values):
        vars(self).update(values)


class Layer(Forwarding, Base):
    lr = Forwarded(to="inner")
    state = Forwarded(to="inner")
    groups = Forwarded(to="inner")
    made = Forwarded(to="inner")
    fixed = Forwarded(to="inner", set=False)
    step = Forwarded(to="inner", kind="method")

    def __init__(self, inner):
        self.inner = inner
        with preserved(self):
            super().__init__()


class Unprotected(Layer):
    def __init__(self, inner):
        self.inner = inner
        Base.__init__(self)


@given(st.fixed_dictionaries({n: st.lists(st.integers()) for n in ("lr", "state")}))
def test_the_owner_keeps_its_own_objects(values):
    """Set, replaced, deleted or added: all is as it was, at every depth."""
    owner = Owner(groups=[1], fixed=1, **values)
    before = dict(vars(owner))
    Layer(Layer(owner))

    assert vars(owner).keys() == before.keys()
    assert all(vars(owner)[name] is value for name, value in before.items())


def test_without_it_the_owner_is_overwritten():
    """The test above can fail: the base does write through."""
    owner = Owner(groups=[1], lr=1)
    Unprotected(owner)

    assert vars(owner) == {"lr": 0.0, "state": {}, "made": "by init"}


def test_the_owner_is_restored_when_the_block_raises():
    """An error inside is not swallowed either."""
    owner = Owner(lr=1, groups=[])
    layer = Layer(owner)

    def fails():
        with preserved(layer):
            layer.lr = 2
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()

    assert owner.lr == 1


def test_the_former_owner_is_restored_when_the_target_changes():
    """Values go back to the object that they were taken from."""
    first, second = Owner(lr=1, groups=[]), Owner(lr=5)
    layer = Layer(first)
    with preserved(layer):
        layer.lr = 2
        layer.inner = second

    assert (first.lr, second.lr) == (1, 5)


def test_an_unbound_target_is_reported_on_entering():
    """Bind the target before the block."""
    half = Layer.__new__(Layer)
    with pytest.raises(AttributeError, match="no attribute 'inner'"), preserved(half):
        pytest.fail("the block was entered")
