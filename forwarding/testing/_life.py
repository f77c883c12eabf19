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
    # Before the laws that copy: what they leave on the class would be there already.
    Law(
        name="class untouched",
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
        on="settable",
        values=1,
        statement="copy.copy(w) is a wrapper of the same target.",
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
        """,
    ),
    Law(
        name="deepcopy",
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
    ),
    Law(
        name="pickle",
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
    ),
    Law(
        name="cycles",
        on="wrapper",
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
        name="patched method",
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
)
