"""Test a whole private training run from outside, and bound what it really leaks.

Five audits, by what they look at:

* :func:`conformance`: is the noise of the stated scale and shape and independent, is
  a contribution bounded, and are the batches drawn as stated?
* :func:`canaries`: how well can the best attacker tell who was in the data?
* :func:`one_run`: how well do the losses of a real model tell it?
* :func:`sequential`: does one step after the other hide its records as its noise claims?
  It stops when one does not; :class:`SequentialTest` is the same beside a loop of yours.
* :func:`replay`: does one record change anything public, or a sum by more than stated?

Each takes the training function that is to be audited, called as
``train(model, dataset)``; :func:`run_all` runs all but :func:`one_run`, which takes a
model and records of yours, and :func:`sequential`, which sees no more than
:func:`canaries`, but sooner. It trains the model on the dataset by a
:class:`~dp.DPOptimizer` that it makes, as one would train anything else; the model is
called with a batch and returns one loss an example.

All state how sure they are. A run that is right is accused by :func:`conformance`,
:func:`canaries` or :func:`one_run` with a probability of 1e-9 a finding.
"""

from dp.audit._attack_report import AttackReport
from dp.audit._canaries import CanaryReport, canaries
from dp.audit._conformance import conformance
from dp.audit._one_run import OneRunReport, one_run
from dp.audit._replay import replay
from dp.audit._report import AuditReport
from dp.audit._sequential import SequentialReport, sequential
from dp.audit._sequential_test import SequentialTest
from dp.audit._subject import Train, training
from dp.audit._suite import AuditSuiteReport, run_all


__all__ = (
    "AttackReport",
    "AuditReport",
    "AuditSuiteReport",
    "CanaryReport",
    "OneRunReport",
    "SequentialReport",
    "SequentialTest",
    "Train",
    "canaries",
    "conformance",
    "one_run",
    "replay",
    "run_all",
    "sequential",
    "training",
)
