"""The laws of behaviour: exceptions, absence, threads."""

from forwarding.testing._law import Law


__all__ = ("BEHAVIOUR",)


BEHAVIOUR = (
    Law(
        name="augmented assignment",
        follows=frozenset({"put-get", "no stale read", "delete"}),
        on="settable",
        values=1,
        statement="w.a += v does to t.a what t.a += v does.",
        why=(
            "w.a += v is one get and one put. If they reach different places, the "
            "target's list grows while the wrapper keeps a result of its own."
        ),
        script="""
            addable(value)
            twin, item = MAKE_TARGET(), copy.deepcopy(value)
            twin.NAME = item
            twin.NAME += copy.deepcopy(value)
            target.NAME = value
            wrapper.NAME += copy.deepcopy(value)
            assert alike(target.NAME, twin.NAME)
            assert (target.NAME is value) == (twin.NAME is item)
        """,
    ),
    Law(
        name="probe bites",
        on="data",
        follows=frozenset({"get", "no stale read"}),
        statement="Where the class of t has a property a, w.a is what it returns.",
        why=(
            "A wrapper that looks into the target's __dict__ skips its properties, "
            "and with them validation and computed values. It is also the control "
            "of the kit: the laws below put properties of their own on the target."
        ),
        script="""
            shown = object()
            override(target, NAME=property(lambda self: shown))
            assert wrapper.NAME is shown
        """,
    ),
    Law(
        name="exceptions",
        follows=frozenset({"put-get", "probe bites"}),
        on="settable",
        values=1,
        statement="What t.a raises at a get or a put comes through as the same object.",
        why=(
            "A validator's message is for the user who set the value. Exceptions that "
            "are replaced or swallowed on the way hide it, and except clauses written "
            "for the target stop matching."
        ),
        script="""
            error = RuntimeError("raised by the target")
            override(target, NAME=raising(error))
            assert attempt(getattr, wrapper, "NAME") is error
            assert attempt(setattr, wrapper, "NAME", value) is error
        """,
    ),
    Law(
        name="AttributeError in the target",
        follows=frozenset({"probe bites"}),
        on="data",
        statement="An AttributeError raised inside t.a comes through as it is.",
        why=(
            "A wrapper with __getattr__ answers \"no attribute 'a'\" although a "
            "exists and something inside it failed: hours are lost looking in the "
            "wrong place (wrapt #101, pytorch #83884)."
        ),
        script="""
            error = AttributeError("raised inside the target")
            override(target, NAME=raising(error))
            assert attempt(getattr, wrapper, "NAME") is error
        """,
    ),
    Law(
        name="AttributeError in the wrapper",
        follows=frozenset({"class access"}),
        control="",
        on="wrapper",
        statement="An AttributeError raised inside the wrapper's own property is not masked.",
        why=(
            "With __getattr__ a typo in the wrapper's own property is reported as a "
            "missing attribute of the target (pytorch #53176, #152308)."
        ),
        script="""
            error = AttributeError("raised inside the wrapper")
            child = derive(FACTORY, BELOW, own_property=raising(error))
            assert attempt(getattr, child, "own_property") is error
        """,
    ),
    Law(
        name="missing",
        follows=frozenset(
            {"put-get", "no stale read", "delete", "AttributeError in the target"}
        ),
        on="deletable",
        statement="Where t has no a, w.a raises what t.a raises.",
        why=(
            "The message names the object that lacks the attribute. fastcore's "
            "GetAttr raises AttributeError('a') and the trail ends there."
        ),
        script="""
            del target.NAME
            error = attempt(getattr, wrapper, "NAME")
            assert isinstance(error, AttributeError)
            assert str(error) == str(attempt(getattr, target, "NAME"))
        """,
    ),
    Law(
        name="hasattr",
        follows=frozenset({"put-get", "no stale read", "delete"}),
        on="deletable",
        values=1,
        statement="hasattr and getattr's default answer for w as for t.",
        why=(
            "Frameworks probe: GradScaler asks getattr(optimizer, 'grad_scale', None), "
            "accelerate hasattr(optimizer, 'train'). A wrong answer takes the wrong "
            "branch without an error."
        ),
        script="""
            assert hasattr(wrapper, "NAME")
            del target.NAME
            assert not hasattr(wrapper, "NAME")
            assert getattr(wrapper, "NAME", value) is value
        """,
    ),
    Law(
        name="once",
        follows=frozenset({"put-get", "probe bites"}),
        on="settable",
        values=1,
        statement="One get of w.a is one get of t.a; one put is one put and no get.",
        why=(
            "A property may compute, lock, count or do I/O. A wrapper that asks "
            "hasattr first runs it twice."
        ),
        script="""
            log = []
            override(target, NAME=counting(log))
            wrapper.NAME
            wrapper.NAME = value
            assert log == ["get", "set"]
        """,
    ),
    Law(
        name="threads",
        follows=frozenset({"probe bites", "once"}),
        on="data",
        statement="A get that waits inside t.a neither blocks nor changes another get.",
        why=(
            "A wrapper that parks the value in an attribute of its own while it "
            "works, or holds a lock meanwhile, mixes up or stops the threads of a "
            "data loader (wrapt #347 crashed on shared state)."
        ),
        script="""
            answers = []
            call_during_get(target, "NAME", lambda: answers.append(wrapper.NAME))
            answers.append(wrapper.NAME)
            assert answers == ["get 2", "get 1"]
        """,
    ),
    Law(
        name="traceback",
        on="data",
        follows=frozenset({"exceptions", "probe bites"}),
        statement="What t.a raises keeps its traceback, and every line of it shows.",
        why=(
            "The last frame is where it went wrong. A wrapper that raises the "
            "exception anew, or whose generated code has no source, leaves one to "
            "guess (Lightning #18842)."
        ),
        script="""
            error = RuntimeError("raised by the target")
            override(target, NAME=raising(error))
            attempt(getattr, wrapper, "NAME")
            assert raised_in(error) == "refuse"
            assert sourceless(error) == []
        """,
    ),
)
