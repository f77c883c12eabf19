"""What the law kit reports about a wrapper, and what it says of a broken law."""

import importlib
import sys

import pytest
from hypothesis import settings, strategies as st

from forwarding import Forwarded, Wrapper
from forwarding.testing import (
    LAWS,
    LawBrokenError,
    Options,
    check,
    judge,
    law_tests,
    machine_for,
)
from forwarding.testing._options import Given


FEW = settings(max_examples=8, derandomize=True)


class Engine:
    def __init__(self):
        self.rpm = 900
        self.note = [1]

    @property
    def serial(self):
        return "M-7"

    @property
    def snapshot(self):
        return list(self.note)

    @snapshot.setter
    def snapshot(self, value):
        self.note = list(value)

    def start(self, key, /, *rest, speed=1, **options):
        return key, rest, speed, options


class Car(Wrapper[Engine], forward="rpm note serial snapshot start"):
    pass


class Copied:
    """The wrapper that everybody writes first."""

    def __init__(self, inner):
        self.inner = inner
        self.rpm = inner.rpm


class NoDelete:
    def __init__(self, inner):
        self.inner = inner

    @property
    def rpm(self):
        return self.inner.rpm

    @rpm.setter
    def rpm(self, value):
        self.inner.rpm = value


def of_rpm(wrapper, **options):
    return judge(wrapper, Engine, ["rpm"], depth=1, settings=FEW, **options)


@pytest.mark.slow
def test_a_wrapper_that_keeps_every_law_passes():
    """Data, what is derived from it, what is read-only, and any signature."""
    check(
        Car,
        Engine,
        ["rpm", "note", "serial", "snapshot", "start"],
        values={"snapshot": st.lists(st.integers(), max_size=2)},
        depth=2,
        settings=FEW,
    )


def test_a_law_about_data_that_is_new_at_each_get_can_be_broken():
    """Where identity says nothing, equality does."""

    class Stale(Car):
        def __init__(self, wrapped):
            super().__init__(wrapped)
            self.taken = wrapped.snapshot

        @property
        def snapshot(self):
            return list(self.taken)

    values = st.lists(st.integers(), max_size=2)
    report = judge(Stale, Engine, ["snapshot"], values=values, settings=FEW)

    assert report["get"].status == "holds"
    assert report["re-target"].status == "broken"


def test_a_broken_law_is_told_with_its_counterexample_and_why_it_matters():
    """All that is needed to understand it, to reproduce it, and to waive it."""
    with pytest.raises(LawBrokenError) as caught:
        check(Copied, Engine, ["rpm"], depth=1, settings=FEW)

    assert caught.value.law is LAWS["put-get"]
    assert caught.value.counterexample == (
        "value = None\n"
        "target = Engine()\n"
        "wrapper = Copied(target)\n"
        "wrapper.rpm = value\n"
        "assert target.rpm is value  # fails: 900 is None"
    )
    message = str(caught.value)
    head, *_ = message.splitlines()
    assert head == (
        "Copied breaks the law 'put-get': After w.a = v, t.a is v and w.a is v."
    )
    assert "    assert target.rpm is value  # fails: 900 is None" in message
    assert "Why it matters: A value that stops at the wrapper is lost" in message
    assert "If it need not hold, pass waive={'put-get'}." in message
    assert "So it also breaks: put-put, no stale read, delete" in message


def test_the_only_broken_law_is_told_without_others():
    """Nothing is said that is not so."""

    class Hidden(Car):
        def __dir__(self):
            return []

    with pytest.raises(LawBrokenError) as caught:
        check(Hidden, Engine, ["rpm"], depth=1, settings=FEW)

    assert caught.value.law.name == "dir"
    assert "breaks:" not in str(caught.value)


def test_causes_of_their_own_are_told_apart():
    """Of what follows from the first, and of what does not."""

    class Hidden(NoDelete):
        def __dir__(self):
            return []

    with pytest.raises(LawBrokenError) as caught:
        check(Hidden, Engine, ["rpm"], depth=1, settings=FEW)

    assert caught.value.law.name == "delete"
    assert "So it also breaks: patch." in str(caught.value)
    assert "For causes of their own it breaks: dir." in str(caught.value)


def test_what_one_mistake_breaks_is_put_down_to_one_root():
    """A copy of the reference is one mistake, whatever it breaks."""
    report = of_rpm(Copied)

    assert report.roots == ("put-get",)
    assert len(report.named("broken")) > 15
    assert set(report.follow("put-get")) == {*report.named("broken")} - {"put-get"}
    assert report["no shadow"].summary == "broken, as 'put-get' is"


def test_a_report_ends_with_a_line_that_sums_it_up():
    """How many laws hold, how many are broken, and why."""
    report = of_rpm(NoDelete, waive={"dir"})
    kept = len(report.named("holds"))
    left = len(report.named("not applicable"))

    assert report.summary == (
        f"NoDelete, 1 layer: {kept} hold, 2 broken for 1 cause (delete), "
        f"1 waived, {left} not applicable"
    )
    assert str(report).splitlines()[-1] == report.summary


def test_causes_lead_to_a_root():
    """Each law is put down to known ones, and never to itself by a detour."""

    def ancestors(law, seen=()):
        assert law not in seen, seen
        for cause in LAWS[law].follows | LAWS[law].needs:
            ancestors(cause, (*seen, law))

    for law in LAWS:
        ancestors(law)


@pytest.mark.slow
def test_a_value_that_breaks_a_law_is_made_simple():
    """Of many values that hypothesis draws, the report shows the simplest."""

    class RefusesLong(NoDelete):
        @property
        def rpm(self):
            return self.inner.rpm

        @rpm.setter
        def rpm(self, value):
            is_long = isinstance(value, str) and len(value) > 1
            self.inner.rpm = "too long" if is_long else value

    many = settings(max_examples=60, derandomize=True)
    report = judge(RefusesLong, Engine, ["rpm"], depth=1, settings=many)

    assert report["put-get"].detail.splitlines()[0] == "value = '00'"


def test_a_counterexample_that_hypothesis_does_not_find_again_is_kept():
    """A wrapper that fails once only was caught all the same."""

    class FailsOnce(NoDelete):
        puts = 0

        @property
        def rpm(self):
            return self.inner.rpm

        @rpm.setter
        def rpm(self, value):
            FailsOnce.puts += 1
            self.inner.rpm = None if FailsOnce.puts == 3 else value

    report = judge(FailsOnce, Engine, ["rpm"], depth=1, settings=FEW)

    assert report["put-get"].status == "broken"
    assert "assert target.rpm is value" in report["put-get"].detail


def test_a_counterexample_runs_as_it_is_printed():
    """It fails in the same way outside the kit, with the probes imported."""
    detail = of_rpm(Copied)["deepcopy"].detail
    namespace = {"Engine": Engine, "Copied": Copied}
    exec("from forwarding.testing.probes import *", namespace)  # noqa: S102

    with pytest.raises(AssertionError):
        exec(detail, namespace)  # noqa: S102


@pytest.mark.slow
def test_a_counterexample_shows_values_without_their_addresses():
    """So that two runs print the same, and a page of them changes when they do."""

    class Unprintable:
        def __repr__(self):
            raise ValueError("no")

    class LongName(Copied):
        def __repr__(self):
            return "a very long representation of a wrapper at 0x7f00, to the end"

    def shown(value):
        class Shows(Copied):
            rpm = property(lambda _: value, lambda _, _value: None)

        detail = of_rpm(Shows)["get"].detail
        return detail.partition("fails: ")[2].partition(" is 900")[0]

    assert shown(object()) == "<object object>"
    assert shown(LongName(Engine())) == "a very long r...er, to the end"
    assert "Unprintable instance" in shown(Unprintable())


def test_what_is_waived_is_not_held_against_a_wrapper():
    """Nor is a law that cannot hold without it."""
    report = of_rpm(NoDelete, waive={"delete"})

    assert report.named("broken") == ()
    assert report["delete"].status == "waived"
    assert report["patch"].summary == "not applicable: needs 'delete', which is waived"


def test_a_needless_waiver_is_an_error_if_the_check_is_strict():
    """So a waiver goes when its reason goes."""
    with pytest.raises(
        AssertionError, match="NoDelete keeps 'get', 'dir': remove the needless waiver"
    ):
        check(
            NoDelete,
            Engine,
            ["rpm"],
            depth=1,
            waive={"delete", "dir", "get"},
            strict=True,
            settings=FEW,
        )


def test_a_waiver_that_is_needed_passes_a_strict_check():
    """The check above finds only the needless ones."""
    check(
        NoDelete,
        Engine,
        ["rpm"],
        depth=1,
        waive={"delete"},
        strict=True,
        settings=FEW,
    )


def test_a_report_reads_as_a_table():
    """One line for each law, with what was found, and the reason of what was not."""
    lines = str(of_rpm(NoDelete, waive={"dir"})).splitlines()

    assert lines[0] == "NoDelete"
    assert len(lines) == 2 + len(LAWS)
    assert "get                            holds" in lines
    assert "delete                         broken" in lines
    assert "dir                            waived" in lines
    assert "frame                          not applicable: there is only one name" in (
        lines
    )


@pytest.mark.parametrize(
    ("names", "law", "reason"),
    [
        (["rpm"], "method", "no method among the names"),
        (["start"], "get", "no data attribute among the names"),
        (["serial"], "put-get", "no settable attribute among the names"),
        (["rpm"], "layers", "needs 2 layers"),
    ],
)
def test_a_law_about_nothing_that_is_named_says_so(names, law, reason):
    """It is not counted as kept."""
    verdict = judge(Car, Engine, names, depth=1, settings=FEW)[law]

    assert verdict.summary == f"not applicable: {reason}"


def test_a_law_that_cannot_be_tried_on_the_target_says_why():
    """A number takes no weak references; that proves nothing about the wrapper."""

    class Number(int):
        pass

    class Counter(Wrapper):
        real = Forwarded()

    report = judge(Counter, lambda: Number(3), ["real"], depth=1, settings=FEW)

    assert report["freed"].summary == (
        "not applicable: the target takes no weak references"
    )


@pytest.mark.slow
def test_a_target_that_stores_nothing_that_is_tried_asks_for_values():
    """Otherwise every law on it would hold, for want of an example."""

    class Picky:
        @property
        def mode(self):
            return "eco"

        @mode.setter
        def mode(self, value):
            if value != "eco":
                raise ValueError(value)

    class Driver(Wrapper):
        mode = Forwarded()

    with pytest.raises(
        ValueError, match="Driver: the target stores none of the values"
    ):
        judge(Driver, Picky, ["mode"], depth=1, settings=FEW)

    eco = judge(Driver, Picky, ["mode"], values=st.just("eco"), depth=1, settings=FEW)
    assert eco["put-get"].status == "holds"


def test_a_probe_that_does_not_bite_on_the_bare_target_accuses_nobody():
    """Properties that a target ignores tell nothing about its wrapper."""

    class Bound:
        """Answers from its dictionary, whatever its class says."""

        def __init__(self):
            self.a = 1

        def __getattribute__(self, name):
            own = object.__getattribute__(self, "__dict__")
            return own[name] if name in own else object.__getattribute__(self, name)

        def __setattr__(self, name, value):
            object.__getattribute__(self, "__dict__")[name] = value

        def __delattr__(self, name):
            own = object.__getattribute__(self, "__dict__")
            own.pop(name) if name in own else object.__delattr__(self, name)

    class Declared(Wrapper):
        a = Forwarded()

    report = judge(Declared, Bound, ["a"], settings=FEW)

    assert set(report.named("broken")) <= {"survives cloudpickle"}
    for law in ("exceptions", "once", "threads", "AttributeError in the target"):
        assert report[law].status == "not applicable"
        assert "the bare target does not keep it" in report[law].detail


def test_a_pydantic_model_makes_no_false_alarm():
    """It keeps its values where no property of its class hides them."""
    pydantic = pytest.importorskip("pydantic")

    class Settings(pydantic.BaseModel):
        mode: object = "eco"

    class Declared(Wrapper):
        mode = Forwarded()

    report = judge(Declared, Settings, ["mode"], settings=FEW)

    assert report.roots == ()
    assert report["put-get"].status == "holds"


def test_a_value_that_the_bare_target_does_not_keep_accuses_nobody():
    """The control is run again on the values on which a law fails."""

    class HandsOutCopies:
        def __init__(self):
            self.kept = 0, 0

        @property
        def a(self):
            value, gets = self.kept
            self.kept = value, gets + 1
            return list(value) if gets and isinstance(value, list) else value

        @a.setter
        def a(self, value):
            self.kept = value, 0

    class Declared(Wrapper):
        a = Forwarded()

    many = settings(max_examples=30, derandomize=True)
    report = judge(Declared, HandsOutCopies, ["a"], settings=many)

    assert report.roots == ()
    assert report["put-get"].status == "holds"


def test_a_value_that_cannot_be_copied_is_tried_as_it_is():
    """Others are copied for each run, so that no run sees what another did to them."""

    class Lock:
        def __deepcopy__(self, memo):
            raise TypeError("a lock")

    report = judge(Car, Engine, ["rpm"], values=st.builds(Lock), settings=FEW)

    assert report["put-get"].status == "holds"


def test_a_base_that_assigns_the_name_when_it_is_built_is_no_false_alarm():
    """As ``torch.nn.Module`` assigns ``training``."""

    class Module:
        def __init__(self):
            self.training = True

    class Timed(Module):
        def __init__(self, inner):
            self.inner = inner
            before = inner.training
            super().__init__()
            inner.training = before

        @property
        def training(self):
            return self.inner.training

        @training.setter
        def training(self, value):
            self.inner.training = value

    report = judge(Timed, Module, ["training"], waive={"delete"}, settings=FEW)

    assert report["subclass"].status == "holds"


def test_an_option_that_does_not_exist_is_refused():
    """By each entry, with those that there are."""
    for entry in (judge, check, machine_for, law_tests):
        with pytest.raises(
            TypeError, match="dpeth: no such option; the options are va"
        ):
            entry(Car, Engine, ["rpm"], dpeth=1)


def test_the_keywords_are_those_that_options_explains():
    """One list for type checkers, one for readers, and both the same."""
    assert Given.__annotations__ == Options.__annotations__


@pytest.mark.slow
def test_the_kit_names_what_it_needs(monkeypatch):
    """Hypothesis is an extra of its own."""
    for name in [name for name in sys.modules if name.startswith("forwarding.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)

    with pytest.raises(ImportError, match=r"needs hypothesis: pip install 'forwarding"):
        importlib.import_module("forwarding.testing")
