"""The laws of methods: called, patched, rebound, and what they tell of themselves."""

from forwarding.testing._law import Law


__all__ = ("METHODS",)


# The stand-in must be what a call of the bare target runs.
_BITES = """
    calls, result = [], object()
    override(target, NAME=recorder(result, calls, target.NAME))
    assert finish(target.NAME(*args, **keywords)) is result
"""

METHODS = (
    Law(
        name="method",
        on="method",
        special=True,
        statement="w.m(...) runs t.m once, with t as self and the same arguments.",
        why=(
            "Forwarding is a call on the wrapped object. A method copied into the "
            "wrapper's class runs with the wrapper as self and changes the wrong "
            "object; a frozen signature refuses what the target takes (SQLAlchemy "
            "#6285, step of Opacus 1.6)."
        ),
        script="""
            expected = received(target.NAME, args, keywords)
            calls, result = [], object()
            override(target, NAME=recorder(result, calls, target.NAME))
            assert finish(wrapper.NAME(*args, **keywords)) is result
            assert len(calls) == 1
            assert calls[0][0] is target
            assert calls[0][1] == expected
        """,
    ),
    Law(
        name="method exceptions",
        follows=frozenset({"method"}),
        on="method",
        special=True,
        statement="What t.m raises comes through as the same object.",
        why=(
            "A retry or an out-of-memory handler written for the target's exception "
            "must go on matching when the target is wrapped. A wrapper that expects "
            "some errors itself, of names or arguments that are not there, swallows "
            "those of the target's own code too."
        ),
        script="""
            error = AttributeError("raised inside the target")
            override(target, NAME=failing(error, target.NAME))
            assert attempt(lambda: finish(wrapper.NAME(*args, **keywords))) is error
            error = TypeError("raised inside the target")
            override(target, NAME=failing(error, target.NAME))
            assert attempt(lambda: finish(wrapper.NAME(*args, **keywords))) is error
            error = RuntimeError("raised by the target")
            override(target, NAME=failing(error, target.NAME))
            assert attempt(lambda: finish(wrapper.NAME(*args, **keywords))) is error
        """,
    ),
    Law(
        name="async",
        follows=frozenset({"method"}),
        on="method",
        statement="w.m is a coroutine function if t.m is one.",
        why=(
            "Web frameworks and test runners ask iscoroutinefunction to decide "
            "whether to await; a plain def around a coroutine is called and never run."
        ),
        script="""
            expected = inspect.iscoroutinefunction(target.NAME)
            assert inspect.iscoroutinefunction(wrapper.NAME) == expected
        """,
    ),
    Law(
        name="patched method",
        control=_BITES,
        follows=frozenset({"class access", "method"}),
        on="method",
        statement="w.m = f stays on w; del w.m brings the forwarding back.",
        why=(
            "LR schedulers, profilers and mocks assign optimizer.step. Forwarded to "
            "the target, the assignment makes a wrapper that calls itself: infinite "
            "recursion (sparseml #9), or the inner optimizer patched for good."
        ),
        script="""
            patchable(wrapper)
            stand_in = lambda *args, **keywords: "patched"
            wrapper.NAME = stand_in
            assert wrapper.NAME is stand_in
            assert BELOW.NAME is not stand_in
            del wrapper.NAME
            calls, result = [], object()
            override(target, NAME=recorder(result, calls, target.NAME))
            assert finish(wrapper.NAME(*args, **keywords)) is result
        """,
    ),
    Law(
        name="rebound method",
        control=_BITES,
        follows=frozenset({"class access", "method"}),
        on="method",
        needs=frozenset({"patched method"}),
        statement="w.m = MethodType(w.m.__func__, w) still runs t.m on t.",
        why=(
            "LRScheduler.__init__ takes optimizer.step.__func__ and binds it to the "
            "wrapper. Where w.m is the target's own bound method, the target's code "
            "then runs with the wrapper as self (torchtune #2931)."
        ),
        script="""
            patchable(wrapper)
            calls, result = [], object()
            override(target, NAME=recorder(result, calls, target.NAME))
            wrapper.NAME = types.MethodType(wrapper.NAME.__func__, wrapper)
            assert finish(wrapper.NAME(*args, **keywords)) is result
            assert len(calls) == 1
            assert calls[0][0] is target
        """,
    ),
    Law(
        name="callable kind",
        follows=frozenset({"method"}),
        on="method",
        statement=(
            "w.m is a generator or async generator function if t.m is one, and passes on "
            "what is sent and thrown into it."
        ),
        why=(
            "pytest decides by isgeneratorfunction whether a fixture has a teardown, "
            "FastAPI whether a dependency has an exit. A plain function around a "
            "generator is called, and its second half never runs. A loop that yields "
            "item after item drops what the caller sends back."
        ),
        script="""
            assert callable_kind(wrapper.NAME) == callable_kind(target.NAME)
            converse(target, "NAME")
            expected = conversation(target.NAME, args, keywords)
            assert conversation(wrapper.NAME, args, keywords) == expected
        """,
    ),
    Law(
        name="signature",
        follows=frozenset({"method"}),
        on="method",
        statement="w.m has the parameters of t.m.",
        why=(
            "help(), completion, and every framework that passes arguments by name "
            "(pytest's fixtures, FastAPI, Typer) read the signature; from "
            "(*args, **kwargs) they learn nothing (SQLAlchemy #6285, pydantic's "
            "validate_call)."
        ),
        script="""
            expected = parameters(target.NAME)
            assert parameters(wrapper.NAME) == expected
        """,
    ),
    Law(
        name="keep alive",
        follows=frozenset({"method"}),
        special=True,
        control=_BITES,
        on="method",
        statement="The bound method of a wrapper that was dropped still runs t.m on t.",
        why=(
            "open_wrapper().read is handed to a thread, and the wrapper is collected. "
            "One that closes its target when it dies, or holds itself weakly, leaves "
            "a dead method behind (bpo-18879, NamedTemporaryFile)."
        ),
        script="""
            calls, result = [], object()
            override(target, NAME=recorder(result, calls, target.NAME))
            method = FACTORY(BELOW).NAME
            assert finish(method(*args, **keywords)) is result
        """,
    ),
    Law(
        name="fluent",
        follows=frozenset({"method"}),
        on="fluent",
        statement="Where t.m returns t, w.m returns w.",
        why=(
            "w.eval().to(device) must not lose the wrapper in the middle of a chain, "
            "nor 'with w as x' bind the bare target: what follows would skip the "
            "wrapper's own work (sqlite3.Connection, nn.Module.to)."
        ),
        script="""
            override(target, NAME=returning_self(target.NAME))
            assert finish(wrapper.NAME(*args, **keywords)) is wrapper
        """,
    ),
)
