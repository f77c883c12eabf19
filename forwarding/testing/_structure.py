"""The laws of structure: layers, classes, and where a value lives."""

from forwarding.testing._law import Law


__all__ = ("STRUCTURE",)

STRUCTURE = (
    Law(
        name="no shadow",
        follows=frozenset({"put-get"}),
        on="settable",
        values=1,
        statement="No layer keeps a value of a in a dictionary of its own.",
        why=(
            "Two places for one fact drift apart: the wrapper answers from its own "
            "__dict__ while the target goes on without it. It is how every wrapper "
            "that copies references fails (Opacus up to 1.5.1, apex LARC, fairscale)."
        ),
        script="""
            wrapper.NAME
            wrapper.NAME = value
            assert shadowed([LAYERS], target, "NAME") == []
        """,
    ),
    Law(
        name="layers",
        follows=frozenset({"re-target"}),
        control="",
        on="settable",
        values=1,
        layers=2,
        statement="Every layer asks the next one, so an inner layer can be exchanged.",
        why=(
            "A wrapper that unwraps to the innermost object at construction keeps "
            "using it after a middle layer was replaced, and skips what the middle "
            "layer adds."
        ),
        script="""
            replacement = MAKE_TARGET()
            INNERMOST.AT = replacement
            replacement.NAME = value
            assert wrapper.NAME is value
        """,
    ),
    Law(
        name="agreement",
        follows=frozenset({"put-get", "no stale read"}),
        on="settable",
        values=2,
        statement="Two wrappers of one target agree.",
        why=(
            "A scheduler holds one wrapper and the training loop another; if each "
            "believes its own value, both are wrong."
        ),
        script="""
            second = FACTORY(target)
            wrapper.NAME = value
            assert second.NAME is value
            second.NAME = other
            assert wrapper.NAME is other
        """,
    ),
    Law(
        name="re-target",
        follows=frozenset({"put-get", "no stale read"}),
        control="",
        on="settable",
        values=2,
        statement="After w.inner = t2, w.a is t2.a.",
        why=(
            "The target is looked up at every access, never captured once. Kotlin's "
            "by captures it, and its IDE has to warn of every delegate declared var."
        ),
        script="""
            wrapper.NAME
            replacement = MAKE_TARGET()
            wrapper.AT = replacement
            wrapper.NAME = value
            assert replacement.NAME is value
            replacement.NAME = other
            assert wrapper.NAME is other
        """,
    ),
    Law(
        name="half-built",
        follows=frozenset({"put-get", "class access"}),
        control="",
        on="settable",
        values=1,
        statement="Before __init__ ran, w has no a, and w.a = v raises, storing nothing.",
        why=(
            "copy, pickle and a base class's __init__ all touch objects without a "
            "target. __getattr__ recurses there without end (cpython #133015, wrapt "
            "#47), and a value that is stored silently shadows the target's for ever."
        ),
        script="""
            empty = half_built(type(wrapper))
            unbound(empty, target, "NAME")
            assert not hasattr(empty, "NAME")
            assert attempt(setattr, empty, "NAME", value) is not None
            assert "NAME" not in own_dict(empty)
        """,
    ),
    Law(
        name="class access",
        follows=frozenset({"put-get"}),
        control="",
        on="data",
        statement="The class shows a as a data descriptor.",
        why=(
            "help(), Sphinx, dataclasses, mock's autospec, type checkers and readers "
            "look at the class. What only __getattr__ knows is invisible to them."
        ),
        script="""
            assert hasattr(type(wrapper), "NAME")
            descriptor = inspect.getattr_static(type(wrapper), "NAME")
            assert inspect.isdatadescriptor(descriptor)
        """,
    ),
    Law(
        name="dir",
        follows=frozenset({"class access"}),
        on="data",
        statement="dir(w) lists a.",
        why=(
            "Completion, autospec and every tool that walks an object would not see "
            "the attribute (pytorch #108484 is a long list of users who did not)."
        ),
        script="""
            assert "NAME" in dir(wrapper)
        """,
    ),
    Law(
        name="subclass",
        follows=frozenset({"put-get", "class access"}),
        control="",
        on="settable",
        values=1,
        statement="A subclass goes on forwarding, and may override a.",
        why=(
            "A metaclass that installs its declarations again in every subclass "
            "wipes out the override (dele-gator 0.1); a table kept per class is "
            "empty in the subclass."
        ),
        script="""
            heir = derive(FACTORY, BELOW)
            heir.NAME = value
            assert target.NAME is value
            child = derive(FACTORY, BELOW, NAME=accepting("overridden"))
            assert child.NAME == "overridden"
        """,
    ),
    Law(
        name="class writes",
        on="settable",
        values=1,
        follows=frozenset({"put-get", "class access", "subclass"}),
        control="",
        statement="A property that is put on the class, as mocks do, is seen and undone.",
        why=(
            "mock.patch.object(Wrapper, 'a', PropertyMock()) writes on the class and "
            "deletes it there. A class that ignores either, or installs its "
            "declarations anew, tests the wrong thing, or stays patched."
        ),
        script="""
            heir = derive(FACTORY, BELOW)
            shown = accepting("patched")
            patch = mock.patch.object(type(heir), "NAME", shown, create=True)
            patch.__enter__()
            assert heir.NAME == "patched"
            patch.__exit__(None, None, None)
            heir.NAME = value
            assert target.NAME is value
        """,
    ),
    Law(
        name="complete",
        on="wrapper",
        control="",
        statement="Every public name of t is forwarded, own, composed or refused by w.",
        why=(
            "The target gains a name in its next release, and the wrapper lacks it "
            "or inherits a stale default from a base (SQLAlchemy #7103, #6144, "
            "Lightning #4974)."
        ),
        script="""
            assert uncovered(wrapper, target, LEAVE_OUT) == {}
        """,
    ),
)
