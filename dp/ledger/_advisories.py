"""Faults of earlier releases of this package by which an epsilon was too low.

A ledger carries how many of them were known, and mended, in the release that charged it.
So ``dp.verify`` can tell of a certificate, also years later, that what made it had a
fault. Entries are only ever added, at the end.
"""

from dataclasses import dataclass
from typing import Final, final


__all__ = ("ADVISORIES", "Advisory", "advisories_since")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """One fault.

    Attributes:
        name: By which it is referred to; its number is its place in the table.
        fault: What went wrong.
        affects: Which runs may have spent more than they state.
    """

    name: str
    fault: str
    affects: str


ADVISORIES: Final = (
    Advisory(
        name="DP-2026-1",
        fault="Whether examples are kept apart was looked at once for each shape of a"
        " graph, and not again when indices, masks or gates changed.",
        affects="losses in which examples began to meet after the first batch: message"
        " passing, free bits, hinges, neighbours within the batch",
    ),
    Advisory(
        name="DP-2026-2",
        fault="Ragged rows that two examples exchanged within one half of the first"
        " batch were taken for their own.",
        affects="losses of packed or ragged rows",
    ),
    Advisory(
        name="DP-2026-3",
        fault="`scale_grad_by_freq` of embeddings scaled an example's gradient by how"
        " often others had its token.",
        affects="models with an Embedding or EmbeddingBag that has the flag",
    ),
    Advisory(
        name="DP-2026-4",
        fault="Clipping norms below 1e-18 could be assigned or scheduled, whose squares"
        " vanish in float32.",
        affects="runs with such a clipping norm",
    ),
    Advisory(
        name="DP-2026-5",
        fault="Threads that stepped at the same time could lose charges.",
        affects="runs whose optimizers were stepped by several threads",
    ),
    Advisory(
        name="DP-2026-6",
        fault="A ticket that was drawn before a fork was good for a release in the"
        " parent and in the child.",
        affects="runs that forked between drawing a batch and its step",
    ),
    Advisory(
        name="DP-2026-7",
        fault="A state that protects one unit of privacy could be loaded, and was"
        " certified, under another.",
        affects="runs that resumed under a plan of another unit of privacy",
    ),
    Advisory(
        name="DP-2026-8",
        fault="Noise below the plan's was composed by privacy loss distributions also"
        " where a release had suggested it.",
        affects="runs with a noise multiplier that was assigned",
    ),
    Advisory(
        name="DP-2026-9",
        fault="A run that ended before its plan stated the epsilon of the steps taken,"
        " also where a release had decided the end.",
        affects="runs that ended before their plan",
    ),
    Advisory(
        name="DP-2026-10",
        fault="Steps on truncated batches for which every example is drawn were composed"
        " as one release.",
        affects="runs with `TruncatedPoissonSampling` at a sampling probability of 1",
    ),
    Advisory(
        name="DP-2026-11",
        fault="Rows whose unit was NaN, a tensor or an object without an equality of its"
        " own were each clipped as a unit.",
        affects="runs with `units=` of such values",
    ),
    Advisory(
        name="DP-2026-12",
        fault="Less was taken off delta than composing many releases may round.",
        affects="runs of hundreds of thousands of steps at a delta near 1e-10, whose"
        " epsilon was up to a percent too low",
    ),
    Advisory(
        name="DP-2026-13",
        fault="Losses of several units that the loader had drawn, or of rows whose unit"
        " was None, were clipped together as one unit.",
        affects="runs with `units=` that group what the loader drew apart, such as users"
        " under a plan for examples, or with units that are None",
    ),
    Advisory(
        name="DP-2026-14",
        fault="Ranks could hold one example, or one unit's rows, several times.",
        affects="runs of several processes on random splits of augmented data, on parts"
        " that `DistributedSampler` had filled up, with a user's rows in two"
        " parts, or with a loader that was read before the processes had joined",
    ),
    Advisory(
        name="DP-2026-15",
        fault="Gradients that follow other examples of the batch, while no loss does,"
        " were not looked for.",
        affects="models with hooks, custom backward functions, detached terms or"
        " compressed activations that scale gradients by a number of the batch",
    ),
    Advisory(
        name="DP-2026-16",
        fault="Two processes that tuned with one file each published a choice, and each"
        " stated the cost of one.",
        affects="choices of `dp.tune` whose `file` two processes used at a time",
    ),
    Advisory(
        name="DP-2026-17",
        fault="Rows that have data in common were taken for several examples.",
        affects="runs on overlapping windows, on datasets that repeat their rows or draw"
        " them at random, or that make rows by a statistic of all of them",
    ),
    Advisory(
        name="DP-2026-18",
        fault="A ledger did not know what an earlier one had paid for the same rows in a"
        " list, or in a dataset that was built anew of the same arrays.",
        affects="a second run of one process on such rows, as of a notebook cell that is"
        " run again",
    ),
    Advisory(
        name="DP-2026-19",
        fault="Rows were taken for those of the units, or the rank, that had their numbers"
        " when the loader was made.",
        affects="runs with `units=`, or of several ranks, on a dataset whose order changed"
        " while they trained, as where a list is shuffled in place",
    ),
    Advisory(
        name="DP-2026-20",
        fault="Queries before training took rows for units where a unit is one value of a"
        " column.",
        affects="queries of a ledger whose plan protects users of several rows",
    ),
    Advisory(
        name="DP-2026-21",
        fault="Rows of which a part is another part of the next row were taken for"
        " several examples; and so were, without a warning, copies of rows, pairs of a few"
        " and overlapping windows that were shuffled.",
        affects="runs on rows of a series that hold a value and the one after it, or lags;"
        " on rows that were drawn several times to balance classes; on pairs; and on windows"
        " of a series that were split at random",
    ),
)


def advisories_since(num_known: int) -> tuple[Advisory, ...]:
    """Return the faults of a release that knew the first *num_known* of the table."""
    return ADVISORIES[num_known:]
