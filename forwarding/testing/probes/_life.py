"""Copies, weak references, other threads, other processes, and late targets."""

import contextlib
import copy
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from typing import Any
from unittest import mock

from forwarding.testing.probes._pickling import pickled
from forwarding.testing.probes._values import NotApplicableError, alike, attempt


__all__ = (
    "copyable",
    "counted",
    "declared",
    "elsewhere",
    "keeps",
    "link",
    "linked",
    "patchable",
    "together",
    "travelled",
    "uncovered",
    "weakly",
)

_LINK = "law_kit_link"
_BUILD_SECONDS = 0.005  # long enough for other threads to ask meanwhile
_NUM_THREADS = 4


def copyable(target: object, *ways: Callable[[Any], Any]) -> None:
    """Require that the target itself can be copied in these ways.

    >>> copyable([1], copy.copy, pickled)
    """
    for way in ways:
        error = attempt(way, target)
        if error is not None:
            raise NotApplicableError(
                f"{way.__name__} of the target itself raises {type(error).__name__}"
            )


def keeps(
    how: Callable[[Any], Any], wrapper: object, target: object, name: str
) -> bool:
    """Tell whether a copied wrapper keeps a value that a copied target keeps."""
    value = getattr(target, name)
    if not alike(getattr(how(target), name, None), value):
        return True
    return alike(getattr(how(wrapper), name), value)


def link(target: Any, wrapper: object) -> None:
    """Let the target point back at its wrapper, as a child does at its parent."""
    copyable(target, copy.deepcopy, pickled)
    error = attempt(setattr, target, _LINK, None)
    if error is None and attempt(getattr, copy.deepcopy(target), _LINK) is None:
        setattr(target, _LINK, wrapper)
        return
    raise NotApplicableError("the target keeps no further attribute in a copy")


def linked(wrapper: object, attribute: str, depth: int) -> object:
    """Return what the target ``depth`` times ``attribute`` below points back at."""
    for _ in range(depth):
        wrapper = getattr(wrapper, attribute)
    return getattr(wrapper, _LINK)


def patchable(wrapper: object) -> None:
    """Require that ``wrapper`` can hold attributes of its own."""
    if attempt(object.__getattribute__, wrapper, "__dict__") is not None:
        raise NotApplicableError("an instance has no dictionary to patch")


def weakly(target: Any, make_target: Callable[[], Any]) -> Callable[[], object]:
    """Return a weak reference to a target that is freed when it is dropped."""
    try:
        alone = weakref.ref(make_target())
    except TypeError as error:
        raise NotApplicableError("the target takes no weak references") from error
    if alone() is not None:
        raise NotApplicableError("the target itself waits for the garbage collector")
    return weakref.ref(target)


def declared(cls: type) -> list[str]:
    """Return the names that ``cls`` declares to forward; none for a foreign class.

    >>> declared(int)
    []
    """
    from forwarding import forwarded_attributes  # noqa: PLC0415  # a probe is no user

    return sorted(forwarded_attributes(cls))


def uncovered(
    wrapper: object, target: object, leave_out: Collection[str]
) -> dict[str, str]:
    """Return the public names of the target that a wrapper lacks or hides.

    Each is told to be ``"missing"`` or ``"shadowed"``.
    """
    from forwarding import coverage  # noqa: PLC0415  # a probe is no user

    sorted_names = coverage(wrapper, target, leave_out=leave_out)
    return {
        **dict.fromkeys(sorted_names.missing, "missing"),
        **dict.fromkeys(sorted_names.shadowed, "shadowed"),
    }


def travelled(wrapper: Any) -> Any:
    """Return ``wrapper`` after a trip by cloudpickle, with its class by value.

    So classes of a notebook or a script travel to the workers of joblib, Dask
    and Ray.
    """
    try:
        import cloudpickle  # noqa: PLC0415  # optional
    except ImportError as error:
        raise NotApplicableError("cloudpickle is not installed") from error
    try:
        with _by_value(type(wrapper).__module__, cloudpickle):
            packed = cloudpickle.dumps(wrapper)
    except Exception as error:
        raise NotApplicableError(
            f"cloudpickle cannot pack it: {type(error).__name__}"
        ) from error
    return cloudpickle.loads(packed)


@contextlib.contextmanager
def _by_value(module: str, cloudpickle: Any) -> Iterator[None]:
    """Pack the classes of a module by value, and as another process builds them.

    In this process cloudpickle knows its classes by a number, and would put what it
    unpacks on the live class.
    """
    # Of a doctest, classes are of "builtins", and object itself is of that module, too.
    is_importable = module in sys.modules and module not in {"__main__", "builtins"}
    if is_importable:
        cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        with mock.patch.object(
            cloudpickle.cloudpickle, "_get_or_create_tracker_id", return_value=None
        ):
            yield
    finally:
        if is_importable:
            cloudpickle.unregister_pickle_by_value(sys.modules[module])


def counted(log: list[str], make_target: Callable[[], Any]) -> Callable[[], Any]:
    """Return a slow ``make_target`` that writes down each call."""

    def make() -> Any:
        log.append("made")
        time.sleep(_BUILD_SECONDS)
        return make_target()

    return make


def elsewhere(action: Callable[[], object]) -> None:
    """Run ``action`` in a thread and a context of its own; raise what it raises."""
    errors: list[Exception | None] = []
    thread = threading.Thread(target=lambda: errors.append(attempt(action)))
    thread.start()
    thread.join()
    if errors[0] is not None:
        raise errors[0]


def together(action: Callable[[], object]) -> list[object]:
    """Return what ``action`` returns in several threads that start at once.

    What it raises in one of them is raised here.
    """
    answers: list[object] = []
    errors: list[Exception] = []
    gate = threading.Barrier(_NUM_THREADS)

    def run() -> None:
        gate.wait()
        error = attempt(lambda: answers.append(action()))
        if error is not None:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(_NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers
