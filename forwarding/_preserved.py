"""Keep a base ``__init__`` from overwriting what the target owns."""

from typing import TYPE_CHECKING, Any, final

from forwarding._build import Switch, decide, switches
from forwarding._dynamic import is_built
from forwarding._path import Item, Part, spelled_path, step
from forwarding._read_only import Gate, gates
from forwarding._record import Spec, forwarded_attributes, undecided_names
from forwarding._recording import MISSING, Unreadable, Writes, recorders
from forwarding.exceptions import ForwardingError


if TYPE_CHECKING:
    from types import FunctionType

__all__ = ("preserved",)


@final
class preserved:  # noqa: N801 -- Read as a verb: with preserved(self).
    """Undo, when the block ends, what was written to owners through a wrapper.

    For a base whose ``__init__`` assigns names that are forwarded: the
    assignments reach the target, which must keep its own values.

    >>> from forwarding import Forwarded, Wrapper
    >>> class Base:
    ...     def __init__(self):
    ...         self.lr = 0.0
    >>> class Tuned(Wrapper, Base):
    ...     lr = Forwarded()
    ...     def __init__(self, wrapped):
    ...         self.__wrapped__ = wrapped
    ...         with preserved(self):
    ...             Base.__init__(self)
    >>> inner = Base(); inner.lr = 0.5
    >>> Tuned(inner).lr
    0.5

    Args:
        wrapper: Its target must be bound already.

    Raises:
        AttributeError: On entering, the target is not bound yet.
        ForwardingError: On leaving, something that was written could not be put
            back, such as a property that can be set and not read. All the rest was.

    Guarantees:
        * The same objects are put back on the same owners, also when the block
          raises or binds another target. A name that an owner did not have is
          deleted again.
        * Attributes that the block does not write are neither read nor written.
        * A write that the declaration (``set=False``) or the owner (a property without
          a setter, a frozen dataclass) would refuse is dropped, and no error.
        * What an accessor of your own writes (``@x.setter``) is not undone.
    """

    __slots__ = ("_gates", "_switches", "_wrapper", "_writes")

    def __init__(self, wrapper: object, /) -> None:
        self._wrapper = wrapper
        self._writes = Writes(wrapper)
        self._switches: list[tuple[FunctionType, Switch]] = []
        self._gates: list[Gate] = []

    def __enter__(self) -> None:
        cls = type(self._wrapper)
        data = _data(cls)
        roots = {str(spec.path[0]): spec.path[0] for spec in data.values()}
        built = {root for root in roots if is_built(self._wrapper, root)}
        for root in built:
            step(self._wrapper, roots[root])  # Raises here if it is not bound.
        for name in undecided_names(cls) & data.keys():
            if str(data[name].path[0]) in built:
                decide(self._wrapper, name)
                data = _data(cls)  # It may have turned out to be a method.
        self._switches = [s for name in data for s in switches(cls, name).items()]
        self._gates = [gate for name in data for gate in gates(cls, name)]
        self._writes = Writes(self._wrapper)
        recorders.append(self._writes)
        for function, switch in self._switches:
            switch.turn(function, by=1)
        for gate in self._gates:
            gate.turn(by=1)

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        for function, switch in self._switches:
            switch.turn(function, by=-1)
        for gate in self._gates:
            gate.turn(by=-1)
        recorders.remove(self._writes)
        failures = [
            failure
            for owner, part, value in self._writes.latest_first()
            if (failure := _put_back(owner, part, value))
        ]
        if not failures:
            return
        problem = ForwardingError(
            f"{type(self._wrapper).__name__}: preserved() could not put back "
            f"{'; '.join(failures)}; do not forward it, or write its setter yourself"
        )
        if error is None:
            raise problem
        error.add_note(str(problem))


def _data(cls: type) -> dict[str, Spec]:
    """Return what a base may try to write through a wrapper."""
    specs = forwarded_attributes(cls).items()
    return {name: spec for name, spec in specs if spec.kind == "data"}


def _put_back(owner: Any, part: Part, value: Any) -> str:
    """Return what went wrong, "" if nothing did."""
    where = type(owner).__name__ + spelled_path(("", part))
    if isinstance(value, Unreadable):
        return f"{where}, which could not be read before: {value.error!r}"
    try:
        if value is MISSING:
            _delete(owner, part)
        else:
            _assign(owner, part, value)
    except Exception as error:  # noqa: BLE001 -- The other values are put back first.
        return f"{where}: {error!r}"
    return ""


def _assign(owner: Any, part: Part, value: Any) -> None:
    try:
        if step(owner, part) is value:
            return
    except Exception:  # noqa: BLE001, S110 -- It is assigned in any case.
        pass
    if isinstance(part, Item):
        owner[part.key] = value
    else:
        setattr(owner, part, value)


def _delete(owner: Any, part: Part) -> None:
    if isinstance(part, Item):
        del owner[part.key]
    elif hasattr(owner, part):
        delattr(owner, part)
