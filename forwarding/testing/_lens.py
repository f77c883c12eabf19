"""The laws of a lens: what is put is what is got, and it is the target's own."""

from forwarding.testing._law import Law


__all__ = ("LENS",)

LENS = (
    Law(
        name="get",
        on="data",
        statement="w.a is t.a: the same object, not a copy.",
        why=(
            "A change of a copied list or dict changes nothing: the classic wrapper "
            "that hands out its own param_groups trains with a learning rate that "
            "cannot be changed (apex #766, fairscale #28)."
        ),
        script="""
            assert wrapper.NAME is target.NAME
        """,
    ),
    Law(
        name="put-get",
        follows=frozenset({"get"}),
        on="settable",
        values=1,
        equal=True,
        statement="After w.a = v, t.a is v and w.a is v.",
        why=(
            "A value that stops at the wrapper is lost to code that uses the target: "
            "the LR schedule of DP training was dead because param_groups was "
            "assigned to the outermost wrapper (opacus #649, dp-transformers #43); "
            "a checkpoint loaded through LightningOptimizer never reaches the real "
            "optimizer."
        ),
        script="""
            wrapper.NAME = value
            assert target.NAME is value
            assert wrapper.NAME is value
        """,
    ),
    Law(
        name="get-put",
        follows=frozenset({"get", "put-get"}),
        on="settable",
        statement="w.a = w.a changes nothing.",
        why=(
            "Code that saves and restores an attribute would leave the target "
            "different from what it was: a list turned into a view, a default "
            "dict into a dict."
        ),
        script="""
            before = target.NAME
            wrapper.NAME = wrapper.NAME
            assert target.NAME is before
        """,
    ),
    Law(
        name="put-put",
        follows=frozenset({"put-get"}),
        on="settable",
        values=2,
        statement="After w.a = v; w.a = u, only u is left.",
        why=(
            "A wrapper that forwards the first assignment only, as one that compares "
            "with a remembered value does, freezes a schedule at its first step."
        ),
        script="""
            wrapper.NAME = value
            wrapper.NAME = other
            assert target.NAME is other
        """,
    ),
    Law(
        name="no stale read",
        follows=frozenset({"get", "put-get", "no shadow"}),
        on="settable",
        values=2,
        statement="After t.a = v, w.a is v: also when w.a was read or put before.",
        why=(
            "Other code holds the target and reassigns the attribute: "
            "Optimizer.load_state_dict does it to state and param_groups. A wrapper "
            "that remembers the old object goes on with it (opacus before #660, "
            "Lightning #18279, pytorch #141005)."
        ),
        script="""
            wrapper.NAME
            target.NAME = value
            assert wrapper.NAME is value
            wrapper.NAME = other
            target.NAME = value
            assert wrapper.NAME is value
        """,
    ),
    Law(
        name="delete",
        follows=frozenset({"put-get", "no shadow"}),
        on="deletable",
        statement="After del w.a, neither t nor w has a; a second del raises as on t.",
        why=(
            "GradScaler sets optimizer.grad_scale and deletes it after the step; "
            "mock.patch.object deletes before it restores. Without a deleter the "
            "first raises and the second leaves its stand-in behind (accelerate "
            "1.15, opacus 1.6)."
        ),
        script="""
            del wrapper.NAME
            assert not hasattr(target, "NAME")
            assert not hasattr(wrapper, "NAME")
            expected = attempt(delattr, target, "NAME")
            assert type(attempt(delattr, wrapper, "NAME")) is type(expected)
        """,
    ),
    Law(
        name="frame",
        follows=frozenset({"put-get"}),
        on="settable",
        values=1,
        statement="w.a = v changes no other attribute than t.a = v does.",
        why=(
            "Two names that share a slot, by a typo in a declared path or one cache "
            "for all names, overwrite each other without an error."
        ),
        script="""
            twin = MAKE_TARGET()
            expected = touched(twin, OTHERS, lambda: setattr(twin, "NAME", value))
            actual = touched(target, OTHERS, lambda: setattr(wrapper, "NAME", value))
            assert actual == expected
        """,
    ),
    Law(
        name="read-only",
        follows=frozenset({"put-get", "class access"}),
        control="",
        on="read-only",
        statement="w.a = v and del w.a raise AttributeError and change nothing.",
        why=(
            "An attribute declared read-only that is stored on the wrapper instead "
            "looks changed to its writer and unchanged to all other code."
        ),
        script="""
            before = target.NAME
            assert isinstance(attempt(setattr, wrapper, "NAME", None), AttributeError)
            assert isinstance(attempt(delattr, wrapper, "NAME"), AttributeError)
            assert target.NAME is before
            assert wrapper.NAME is before
        """,
    ),
)
