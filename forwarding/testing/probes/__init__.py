"""The tools that the laws' scripts call, so that a counterexample runs as it is printed.

Every counterexample is a program: it needs the user's own names and
``from forwarding.testing.probes import *``. A probe that cannot do its work on
some class (no instance dictionary, a layout fixed in C) raises
:class:`NotApplicableError`; the law then says nothing about that class.
"""

import copy
import inspect
import types
from unittest import mock

from forwarding.testing.probes._life import (
    copyable,
    counted,
    declared,
    elsewhere,
    keeps,
    link,
    linked,
    patchable,
    together,
    travelled,
    uncovered,
    weakly,
)
from forwarding.testing.probes._methods import (
    Items,
    callable_kind,
    conversation,
    converse,
    failing,
    finish,
    parameters,
    received,
    recorder,
    returning_self,
)
from forwarding.testing.probes._overrides import (
    accepting,
    call_during_get,
    compute,
    counting,
    derive,
    half_built,
    override,
    raised_in,
    raising,
    sourceless,
    unbound,
)
from forwarding.testing.probes._pickling import pickled
from forwarding.testing.probes._values import (
    NotApplicableError,
    addable,
    alike,
    attempt,
    changed,
    hashes_agree,
    own_dict,
    shadowed,
    touched,
)


__all__ = (
    "Items",
    "NotApplicableError",
    "accepting",
    "addable",
    "alike",
    "attempt",
    "call_during_get",
    "callable_kind",
    "changed",
    "compute",
    "conversation",
    "converse",
    "copy",
    "copyable",
    "counted",
    "counting",
    "declared",
    "derive",
    "elsewhere",
    "failing",
    "finish",
    "half_built",
    "hashes_agree",
    "inspect",
    "keeps",
    "link",
    "linked",
    "mock",
    "override",
    "own_dict",
    "parameters",
    "patchable",
    "pickled",
    "raised_in",
    "raising",
    "received",
    "recorder",
    "returning_self",
    "shadowed",
    "sourceless",
    "together",
    "touched",
    "travelled",
    "types",
    "unbound",
    "uncovered",
    "weakly",
)
