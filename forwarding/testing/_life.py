"""The laws of a wrapper's life: built, copied, pickled, patched, freed."""

from forwarding.testing._law import Law


__all__ = ("LIFE",)

LIFE = (
    Law(
        name="construction",
        on="data",
        statement="Building w leaves t.a as it was.",
        why=(
            "torch's Optimizer.__init__ assigns state, param_groups and defaults. A "
            "forwarding wrapper that runs it wipes out the moments of the optimizer "
            "it was given; use forwarding.preserved."
        ),
        script="""
            fresh = MAKE_TARGET()
            before = fresh.NAME
            built = FACTORY(fresh)
            assert fresh.NAME is before
        """,
    ),
    Law(
        name="preserved",
        on="data",
        follows=frozenset({"construction", "probe bites"}),
        statement="Building w neither writes t.a nor fails where t.a is computed.",
        why=(
            "A wrapper that saves and restores what its base's __init__ overwrites "
            "stops at a property without a setter, with the rest not yet restored, "
            "or runs a setter for no reason."
        ),
        script="""
            fresh = MAKE_TARGET()
            compute(fresh, "NAME")
            assert attempt(FACTORY, fresh) is None
        """,
        control="""
            compute(target, "NAME")
            assert isinstance(attempt(setattr, target, "NAME", None), AttributeError)
        """,
    ),
    # Before the laws that copy: what they leave on the class would be there already.
    Law(
        name="class untouched",
        control="",
        on="wrapper",
        statement="Copying or pickling w, even in vain, leaves its class alone.",
        why=(
            "Optimizer.__setstate__ patches step on the class. One failed deepcopy "
            "of an Opacus 1.6 DPOptimizer breaks step() of every DPOptimizer in the "
            "process."
        ),
        script="""
            before = dict(vars(type(wrapper)))
            attempt(copy.copy, wrapper)
            attempt(copy.deepcopy, wrapper)
            attempt(pickled, wrapper)
            assert changed(type(wrapper), before) == []
        """,
    ),
    Law(
        name="copy",
        follows=frozenset({"put-get", "no stale read", "half-built"}),
        control="copyable(target, copy.copy)",
        on="settable",
        values=1,
        statement="copy.copy(w) is another wrapper of the same target.",
        why=(
            "__getattr__ recurses in copy until the stack is gone (wrapt #86, "
            "lazy-object-proxy #7), and proxies hand out a bare target or raise."
        ),
        script="""
            copyable(target, copy.copy)
            twin = copy.copy(wrapper)
            assert type(twin) is type(wrapper)
            assert twin is not wrapper
            target.NAME = value
            assert twin.NAME is value
            assert own_dict(twin) is not own_dict(wrapper)
        """,
        nameless="""
            copyable(target, copy.copy)
            assert type(copy.copy(wrapper)) is type(wrapper)
        """,
    ),
    Law(
        name="deepcopy",
        follows=frozenset({"put-get", "no stale read", "half-built"}),
        on="settable",
        values=2,
        statement="copy.deepcopy(w) is a wrapper of a target of its own.",
        why=(
            "An EMA or a second run starts from a deep copy. If it shares the target, "
            "training one trains the other; if it raises, as for Opacus 1.6, there "
            "is no second run (accelerate #805)."
        ),
        script="""
            copyable(target, copy.deepcopy)
            twin = copy.deepcopy(wrapper)
            assert type(twin) is type(wrapper)
            kept = twin.NAME
            target.NAME = value
            assert twin.NAME is kept
            twin.NAME = other
            assert target.NAME is value
            assert keeps(copy.deepcopy, wrapper, target, "NAME")
        """,
        nameless="""
            copyable(target, copy.deepcopy)
            assert type(copy.deepcopy(wrapper)) is type(wrapper)
        """,
    ),
    Law(
        name="pickle",
        follows=frozenset({"put-get", "no stale read", "half-built"}),
        on="settable",
        values=1,
        statement="A pickled w comes back as a wrapper with the same values.",
        why=(
            "torch.save, multiprocessing and job queues pickle. Optimizer.__getstate__ "
            "keeps three names and drops the wrapped optimizer (torchrec #113, "
            "pytorch #72839)."
        ),
        script="""
            copyable(target, pickled)
            twin = pickled(wrapper)
            assert type(twin) is type(wrapper)
            kept = twin.NAME
            assert alike(kept, target.NAME)
            target.NAME = value
            assert twin.NAME is kept
            assert keeps(pickled, wrapper, target, "NAME")
        """,
        nameless="""
            copyable(target, pickled)
            assert type(pickled(wrapper)) is type(wrapper)
        """,
    ),
    Law(
        name="cycles",
        on="wrapper",
        follows=frozenset({"layers"}),
        needs=frozenset({"deepcopy", "pickle"}),
        statement="A target that points back at w is copied and pickled as a loop.",
        why=(
            "Trees and modules point at their parents. A __deepcopy__ that forgets "
            "its memo recurses without end, or doubles the graph."
        ),
        script="""
            link(target, wrapper)
            twin = copy.deepcopy(wrapper)
            assert linked(twin, "AT", DEPTH) is twin
            twin = pickled(wrapper)
            assert linked(twin, "AT", DEPTH) is twin
        """,
    ),
    Law(
        name="freed",
        follows=frozenset({"get"}),
        on="data",
        statement="Dropping w frees t at once: the wrapper adds no reference cycle.",
        why=(
            "A closure or bound method kept on the wrapper holds gigabytes of "
            "optimizer state until the collector happens to run."
        ),
        script="""
            wrapper.NAME
            reference = weakly(target, MAKE_TARGET)
            del target, LAYERS
            assert reference() is None
        """,
    ),
    Law(
        name="patch",
        follows=frozenset({"put-get", "once", "missing"}),
        on="deletable",
        values=1,
        needs=frozenset({"delete"}),
        statement="mock.patch.object(w, 'a', v) reaches t and is undone.",
        why=(
            "patch deletes before it restores. Where delete is missing it raises and "
            "leaves the stand-in in the real object: accelerate's optimizer then has "
            "no parameter groups."
        ),
        script="""
            before = target.NAME
            patch = mock.patch.object(wrapper, "NAME", value)
            patch.__enter__()
            assert target.NAME is value
            patch.__exit__(None, None, None)
            assert target.NAME is before
        """,
    ),
    Law(
        name="eq and hash",
        on="wrapper",
        statement="Where w equals another wrapper or t, it has the hash that they have.",
        why=(
            "A wrapper that forwards __eq__ and not __hash__ is lost in a dict or a "
            "set: it equals a key and is not found (soupy #10)."
        ),
        script="""
            assert hashes_agree(wrapper, FACTORY(BELOW))
            assert hashes_agree(wrapper, BELOW)
        """,
    ),
    Law(
        name="lazy",
        on="data",
        follows=frozenset({"get"}),
        control="",
        statement="Nothing but an access builds a late target, and it is built once.",
        why=(
            "repr() in a log opens the database; two threads that ask at once build "
            "two connections (functools.cached_property from Python 3.12 on); an "
            "error of the factory is reported as a missing attribute (Django "
            "#28358, babel #723)."
        ),
        script="""
            log = []
            late = LAZY(counted(log, MAKE_TARGET))
            shown = repr(late)
            assert log == []
            together(lambda: late.NAME)
            assert log == ["made"]
            error = RuntimeError("raised by the factory")
            assert attempt(getattr, LAZY(failing(error, len)), "NAME") is error
        """,
    ),
    Law(
        name="context",
        on="settable",
        values=1,
        follows=frozenset({"put-get"}),
        control="",
        statement="A target that is bound in one thread or context is not seen in another.",
        why=(
            "A request sees the session of another user: a target that is kept on the "
            "class or in a module leaks from one thread, or task, into the next."
        ),
        script="""
            current = BIND(target)
            here = current.NAME
            replacement = MAKE_TARGET()
            elsewhere(lambda: setattr(BIND(replacement), "NAME", value))
            assert replacement.NAME is value
            assert current.NAME is here
        """,
    ),
    Law(
        name="survives cloudpickle",
        on="settable",
        values=2,
        follows=frozenset({"pickle", "put-get"}),
        statement="A class that travelled by value forwards, and tells so, as before.",
        why=(
            "The classes of a notebook reach the workers of joblib, Dask and Ray by "
            "value: the trip rewrites code objects and builds the class anew, without "
            "the class statement, its keywords and its decorators."
        ),
        script="""
            twin = travelled(wrapper)
            assert declared(type(twin)) == declared(type(wrapper))
            twin.NAME = value
            assert alike(twin.NAME, value)
            wrapper.NAME = other
            assert target.NAME is other
        """,
    ),
)
