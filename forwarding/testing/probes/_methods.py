"""Stand-ins for a target's methods, of the same kind as what they replace."""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Never, Self

from forwarding.testing.probes._overrides import override
from forwarding.testing.probes._values import NotApplicableError


__all__ = (
    "Items",
    "callable_kind",
    "conversation",
    "converse",
    "failing",
    "finish",
    "parameters",
    "received",
    "recorder",
    "returning_self",
)


def callable_kind(function: object) -> str:
    """Return ``"generator"``, ``"async generator"`` or ``"plain"``.

    >>> callable_kind(lambda: (yield))
    'generator'
    """
    if inspect.isasyncgenfunction(function):
        return "async generator"
    return "generator" if inspect.isgeneratorfunction(function) else "plain"


def parameters(function: Callable[..., object]) -> list[tuple[object, ...]]:
    """Return name, kind and default of every parameter.

    >>> parameters(lambda x, *, k=1: None)
    [('x', 'POSITIONAL_OR_KEYWORD', 'required'), ('k', 'KEYWORD_ONLY', 1)]
    """
    try:
        signature_parts = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise NotApplicableError("a method tells no signature") from error
    return [
        (
            one.name,
            one.kind.name,
            "required" if one.default is one.empty else one.default,
        )
        for one in signature_parts
    ]


def received(
    like: Callable[..., object], args: tuple[object, ...], keywords: dict[str, object]
) -> tuple[object, ...]:
    """Return the arguments as ``like`` receives them, its defaults filled in.

    >>> received(lambda x, k=1: None, ("x",), {})
    (('x', 1), {})
    """
    try:
        bound = inspect.signature(like).bind(*args, **keywords)
    except (TypeError, ValueError):  # no signature, or not these arguments
        return args, keywords
    bound.apply_defaults()
    return bound.args, bound.kwargs


def _like(model: object, method: Callable[..., object]) -> Callable[..., object]:
    """Return ``method`` as a function of the kind that ``model`` is."""

    async def coroutine(*args: object, **keywords: object) -> object:
        return method(*args, **keywords)

    def generator(*args: object, **keywords: object) -> Iterator[object]:
        yield method(*args, **keywords)

    async def async_generator(
        *args: object, **keywords: object
    ) -> AsyncIterator[object]:
        yield method(*args, **keywords)

    if inspect.iscoroutinefunction(model):
        return coroutine
    # A wrapper may dispatch on the kind, so a plain stand-in would test another path.
    kinds = {"generator": generator, "async generator": async_generator}
    return kinds.get(callable_kind(model), method)


def failing(error: Exception, like: object) -> Callable[..., object]:
    """Return a method of the kind of ``like`` whose first call raises this exception.

    Later calls raise nothing, so that one who tries again does not go unnoticed.
    """
    errors = [error]

    def method(*_args: object, **_keywords: object) -> None:
        if errors:
            raise errors.pop()

    return _like(like, method)


def recorder(
    result: object, calls: list[Any], like: Callable[..., object]
) -> Callable[..., object]:
    """Return a method of the kind of ``like`` that returns or yields ``result``.

    It notes in ``calls`` who was called, and with what.
    """

    def method(self: object, *args: object, **keywords: object) -> object:
        calls.append((self, received(like, args, keywords)))
        return result

    return _like(like, method)


def returning_self(like: object) -> Callable[..., object]:
    """Return a method of the kind of ``like`` that returns its ``self``."""

    def method(self: object, *_args: object, **_keywords: object) -> object:
        return self

    return _like(like, method)


class Items:
    """What a stand-in of ``__iter__`` returns; :func:`finish` takes nothing from it.

    >>> list(Items())
    []
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Never:
        raise StopIteration


def finish(result: object) -> object:
    """Return what a coroutine that never waits returns, or a generator yields first.

    Anything else is returned as it is; also a file, which yields its lines.

    >>> async def answer(): return 42
    >>> finish(answer()), finish(iter([7])), finish(range(3))
    (42, 7, range(0, 3))
    """
    if inspect.isasyncgen(result):
        return _driven(anext(result))
    if inspect.iscoroutine(result):
        return _driven(result)
    is_kept = isinstance(result, Items) or hasattr(result, "__enter__")
    if isinstance(result, Iterator) and not is_kept:
        return next(result)
    return result


def converse(target: object, name: str) -> None:
    """Replace a generator method by one that answers what is sent and thrown into it.

    Any other method stays as it is.
    """

    def generator(*_args: object, **_keywords: object) -> Iterator[object]:
        sent = yield "started"
        try:
            yield sent
        except RuntimeError as thrown:
            yield thrown

    async def async_generator(
        *_args: object, **_keywords: object
    ) -> AsyncIterator[object]:
        sent = yield "started"
        try:
            yield sent
        except RuntimeError as thrown:
            yield thrown

    kinds = {"generator": generator, "async generator": async_generator}
    stand_in = kinds.get(callable_kind(getattr(target, name)))
    if stand_in is not None:
        override(target, **{name: stand_in})


def conversation(
    function: Callable[..., Any], args: tuple[object, ...], keywords: dict[str, object]
) -> list[str]:
    """Return what comes back of what is sent and thrown into a generator.

    >>> conversation(lambda: (yield (yield)), (), {})
    ['None', "'sent'", "RuntimeError('thrown')"]
    >>> conversation(len, (), {})
    []
    """
    kind = callable_kind(function)
    if kind == "plain":
        return []
    started = function(*args, **keywords)
    is_async = kind == "async generator"
    send, throw = ("asend", "athrow") if is_async else ("send", "throw")
    words = [
        (send, None),
        (send, "sent"),
        (throw, RuntimeError("thrown")),
        (send, None),
    ]
    answers: list[str] = []
    for way, word in words:
        try:
            answer = getattr(started, way)(word)
            answers.append(repr(_driven(answer) if is_async else answer))
        except (StopIteration, StopAsyncIteration):
            answers.append("end")
            break
        except RuntimeError as error:
            answers.append(repr(error))
            break
    return answers


def _driven(waiting: Any) -> object:
    steps: Coroutine[Any, Any, Any] = waiting
    try:
        steps.send(None)
    except StopIteration as stop:
        return stop.value
    steps.close()
    raise RuntimeError("the forwarded coroutine waits for something of its own")
