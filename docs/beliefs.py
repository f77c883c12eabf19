"""Write the tables of ``reference/beliefs.md``: what an epsilon takes on trust.

Run ``python docs/beliefs.py`` after a change of the table below or of the mutants; the
tests hold page and tables equal. Each row says what is believed, when it is checked or
where the certificate states it, the tests that hold that, and the mutants of the check.
"""

import ast
import runpy
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from source_tree import ROOT


PAGE = ROOT / "docs/reference/beliefs.md"
MUTANTS = ROOT / "tests/benchmarks/mutant_table.py"
ATTACKS = ROOT / "tests/dp/evidence/losses.py"


class Belief(NamedTuple):
    """One thing that an epsilon rests on.

    Attributes:
        says: What is believed.
        when: When that is checked; for a belief that is stated, by whom it is claimed.
        outcome: What happens if it is not so; or the sentence of the certificate.
        tests: The tests that hold it, below ``tests/dp``.
        breaks: The mutants of the check, by what is wrong then.
    """

    says: str
    when: str
    outcome: str
    tests: tuple[str, ...]
    breaks: tuple[str, ...] = ()


_MIXING, _RUNS = (
    "evidence/test_mixing_losses.py::test_",
    "evidence/test_evidence_of_runs.py::test_",
)
_ROWS, _PAID, _CLAIMS = (
    "test_rows_of_tickets.py::test_",
    "test_paid_for.py::test_",
    "test_claims.py::test_",
)
_CERTIFICATE, _UNITS = "test_certificate.py::test_", "test_units.py::test_"
_BESIDE = "test_beside_gradients.py::test_"
_OPTIONS = "test_changed_options.py::test_"
_LOOKS = "a loss function's first 3 steps in a process, and one in 50 that its id picks"

CHECKED = (
    Belief("The loss of an example depends on no other example of its batch, in whatever way.", _LOOKS, "`SampleMixingError`; after a release the run ends, with epsilon infinite",
           (_MIXING + "a_loss_that_uses_other_examples_is_refused_before_a_release", _MIXING + "mixing_that_begins_later_ends_the_run"),
           ("nothing that a look sees is mixing", "no example is exchanged", "half of the examples are never exchanged", "other names of the batch keep its examples in a look", "mixing while gradients are enabled passes for another kernel", "no step that is due is looked at", "only the first steps are looked at", "mixing that a look saw ends nothing")),
    Belief("It depends on no example of an earlier batch, by a buffer, an attribute or a variable.", _LOOKS, "the same",
           (_MIXING + "a_loss_that_uses_other_examples_is_refused_before_a_release", _MIXING + "what_parts_of_one_example_carry_on_is_found"), ("what is carried from batch to batch is not seen", "what parts of one example carry on is not seen")),
    Belief("It does not depend on how many examples there are.", "once in a run, alone and in half of a batch", "the same",
           (_MIXING + "a_loss_that_uses_other_examples_is_refused_before_a_release", _RUNS + "sizes_are_told_by_what_changes_all_losses"), ("what depends on the size of a batch is not seen",)),
    Belief("No gate for outliers opens, which then rescales or drops all losses.", "at the step whose largest loss, over the mean of the others, is more than twice the record; at most 3 times, and once more in 100 steps", "the same",
           (_MIXING + "a_gate_is_found_at_the_step_that_opens_it",), ("a gate for outliers opens unseen",)),
    Belief("Units are apart wherever the graph of the losses leads.", "at every `backward`, by owners of rows", "`SampleMixingError`, with the operation",
           ("per_sample/test_units_apart.py::test_rows_that_begin_to_move_are_noticed",), ("where units meet, the last one owns the row", "what moves rows is looked at once")),
    Belief("Rules, hooks and norms are right.", "at the first 3 backward passes and at one in 128, by powers of two and by torch's own backward pass", "`SampleMixingError` or `WrongGradientError`",
           ("per_sample/test_verification.py::test_a_hook_that_mixes_later_is_found_in_the_end", "per_sample/test_reference.py::test_norms_that_are_too_small_are_noticed_in_every_group"),
           ("nothing is ever verified", "norms are not compared with torch's own", "sums are not compared with torch's own")),
    Belief("Noise on the host is normal, of the scale that was asked for, and each element's own.", "at the first 3 calls of the noise stage and at one in 128, by 2000 elements recomputed from their random bits", "`WrongNoiseError`; the run ends, with epsilon infinite",
           ("test_noise_verification.py::test_a_defect_of_the_noise_is_noticed", "test_mixing_ends_a_run.py::test_wrong_noise_ends_a_run"),
           ("noise that errs is released", "elements that share their random bits verify", "a run whose noise was wrong goes on")),
    Belief("What the optimizer sees is the clipped sum and the noise that were charged, over a public number.", "at the first 3 releases and at one in 512, in some elements of each parameter; not of several ranks, on a GPU, with correlated noise, or with rules that count or scale", "`WrongReleaseError`, before the optimizer moves a parameter; the run ends, with epsilon infinite",
           ("test_witness.py::test_a_defect_between_gradients_and_update_is_noticed", "test_witness.py::test_what_is_wrong_later_ends_the_run"),
           ("sums that get noise are not compared with torch's own", "the optimizer may see something else than was released", "a step is permitted whatever the optimizer sees")),
    Belief("What is charged is the noise that was added.", "at every step", "`PrivacyError`, and nothing is released",
           ("test_optimizer.py::test_noise_of_another_size_than_was_charged_is_never_released",), ("other noise than was charged goes unnoticed",)),
    Belief("No charge of a release is lost, nor taken for one of more noise or less sampling.", "at every release that is compared, and wherever epsilon, a state or a certificate is stated, by a count of each release where its noise is added; not of passes and rounds, nor where releases are not compared", "every epsilon is infinite, or nothing is certified",
           ("test_meter.py::test_a_charge_that_is_lost_makes_every_epsilon_infinite", "test_meter.py::test_a_certificate_of_fewer_charges_is_not_written"),
           ("releases are not counted where noise is added", "an epsilon is stated of charges that lack one", "a certificate is written of fewer charges than releases")),
    Belief("Its gradient depends on no other example, nor on how many there are, where its loss does not: by a hook, a detached term or what autograd saves.", "at the first looks, and at one in eight after that, where no weight is sharded; how many there are in one process alone", "the same",
           ("evidence/test_steered_gradients.py::test_gradients_that_follow_other_examples_are_refused", "evidence/test_steered_gradients.py::test_gradients_that_follow_the_size_of_the_batch_are_refused", "evidence/test_steered_gradients.py::test_gradients_that_begin_to_follow_others_end_the_run", "distributed/test_evidence.py::test_gradients_that_follow_a_batch_are_refused_on_every_rank"),
           ("gradients that follow other examples are not seen", "gradients that follow the size of a batch are not seen", "gradients are compared in the first steps alone")),
    Belief("Buffers hold no private data.", _LOOKS, "`EvidenceWarning`, with their names",
           (_RUNS + "a_buffer_that_holds_private_data_is_told",), ("a buffer that holds private data is not told",)),
)  # fmt: skip

REFUSED = (
    Belief("A step is of the batch that was drawn, whole and once.", "at every `backward` and `step`, by the ticket's rows, storage and number", "`SamplingMismatchError`",
           (_ROWS + "another_batch_of_the_same_size_is_refused", _ROWS + "a_micro_batch_twice_and_another_never_is_refused", _ROWS + "parts_of_one_example_are_that_example"),
           ("another batch of the same size passes for the one that was drawn", "a micro-batch twice and another never", "other columns of a row are taken for another example", "a step on part of its batch", "tickets are not consumed")),
    Belief("An example is one row of the dataset.", "when a loader is made, as far as rows can be compared", "`SamplingMismatchError`",
           (_ROWS + "an_example_in_two_rows_is_refused",), ("an example may be in two rows",)),
    Belief("Rows have no data in common, as overlapping windows have, rows of a value and the next, rows that are repeated, or rows that are drawn at random.", "when a loader is made: a few rows from all over the dataset are compared with those beside them, and with those further on by what the dataset may hold", "`SamplingMismatchError`, unless they are of one unit",
           ("test_shared_rows.py::test_rows_that_have_data_in_common_are_refused", "test_shared_rows.py::test_what_is_in_several_windows_moves_a_sum_once_for_each"), ("windows that overlap are several examples", "what is to predict is the next row's input", "a dataset may hold each example several times", "a dataset may draw its rows at random")),
    Belief("`collate_fn` and `__getitems__` make each row of one example.", "when a loader is made", "`SampleMixingError`",
           (_ROWS + "a_collate_fn_that_mixes_is_refused", _ROWS + "rows_that_depend_on_what_they_are_read_with_are_refused"), ("a collate_fn may mix examples", "a statistic that a collate_fn keeps of its first batch is not seen", "rows that are read together may be mixed")),
    Belief("`__getitem__` makes a row of one unit's examples, whichever row was read before.", "when a loader is made: four rows are made again, while what the dataset keeps by row is watched", "`SampleMixingError`",
           ("test_own_rows.py::test_a_dataset_that_makes_rows_of_several_examples_is_refused",), ("a dataset mixes examples as it reads them", "a dataset keeps a part of the row before", "what a dataset makes of all rows at once is not seen")),
    Belief("A loss is made of one row.", "at every `backward`", "`SampleMixingError`",
           (_ROWS + "losses_of_pieces_of_several_rows_are_refused",), ("a loss may be made of pieces of several rows",)),
    Belief("Weights and data were not paid for by another ledger of this process.", "before every release", "`LedgerError`; go on with `continue_from=`",
           (_PAID + "a_notebook_cell_that_runs_again_is_refused_or_goes_on", _PAID + "other_weights_on_the_same_data_are_refused", _PAID + "rows_that_were_asked_about_are_charged_by_no_other_ledger"),
           ("queries do not know what their rows cost before", "a notebook cell that runs again makes a ledger of its own", "two datasets of one tensor are taken for two peoples'", "a list is nobody's", "a dataset that is built anew of the same array is other people's")),
    Belief("Rows stay at the numbers by which it is known whose they are, and on which rank.", "as each iteration begins, where there are `units=` or several ranks: eight rows are read again", "`SamplingMismatchError`; ranks compare their datasets anew",
           ("test_rows_in_place.py::test_rows_that_moved_to_numbers_of_other_units_are_refused", "distributed/test_data_of_ranks.py::test_rows_that_ranks_shuffle_in_place_have_to_stay_the_same"),
           ("rows that moved are other users'", "ranks whose rows moved are not compared")),
    Belief("`units=` of losses are the units that the loader drew.", "at every `backward`, where the graph keeps a tensor of the batch", "`SamplingMismatchError`",
           ("test_named_units.py::test_other_units_than_were_drawn_are_refused", "test_named_units.py::test_what_is_clipped_together_moves_by_more_than_the_norm"),
           ("what was drawn as several units is clipped as one", "a whole batch is clipped as one unit")),
    Belief("No example or unit is on two ranks.", "at the first release of several ranks, and after something was replaced: by the order and some examples of a dataset that they share, and by the rows and units of parts that a `Subset` or `units=` names", "`RanksDivergedError`, `SamplingMismatchError`",
           ("distributed/test_data_of_ranks.py::test_random_splits_of_augmented_data_have_to_be_the_same", "distributed/test_data_of_ranks.py::test_parts_that_have_data_in_common_are_refused", "distributed/test_data_of_ranks.py::test_batches_from_before_the_ranks_joined_are_refused"),
           ("two ranks train on the same shard", "a row or a unit is on two ranks", "ranks have other examples", "batches from before ranks joined are released by each")),
    Belief("A query has one value a unit.", "where it is asked: no more values than units, for which `units=` says whose rows are where a user may have several; that none is of two units is assumed, and stated", "`ValueError`",
           ("test_queries.py::test_more_values_than_units_are_refused",), ("a query may count a unit twice",)),
    Belief("Rows of one unit are known to be of one.", "when a loader is made: `units` are values, and none is NaN or None", "`TypeError`, `ValueError`",
           (_UNITS + "units_that_are_not_told_apart_by_their_values_are_refused",), ("each row without a user is a user of its own", "each row of a user whom a tensor names is a user of its own")),
    Belief("Noise is no less than planned if it was chosen after a release.", "where it is assigned, and at its step", "`ValueError`, unless it is declared public",
           (_CLAIMS + "less_noise_is_refused_where_it_is_assigned",), ("noise chosen from releases may be less than planned",)),
    Belief("No other optimizer steps private parameters.", "at every step of any optimizer", "`PrivacyError`",
           ("test_guard.py::test_another_optimizer_cannot_step_private_parameters",), ("the wrapped optimizer steps by itself",)),
    Belief("One thread at a time, and no fork, releases a batch.", "at every `backward` and `step`", "`PrivacyError`, `SamplingMismatchError`",
           ("test_optimizer_many.py::test_a_second_thread_inside_a_step_is_refused", "test_optimizer_many.py::test_a_fork_has_no_right_to_the_batch_of_its_parent"),
           ("a fork releases its parent's batch",)),
    Belief("A checkpoint's ledger is its run's.", "on loading", "`LedgerError`",
           ("test_ledger.py::test_a_damaged_state_is_refused", "test_ledger.py::test_charges_of_another_unit_are_refused"), ("a state without a ledger is loaded",)),
)  # fmt: skip

STATED = (
    Belief("Losses that came finished, and what no look could compare, are as the function's would be.", "by who trains; a warning names the remedy", "One example's loss depended on that example and the parameters only.",
           (_RUNS + "finished_losses_are_warned_of_once", _RUNS + "a_certificate_states_and_verifies_it", _RUNS + "altered_evidence_is_found"),
           ("finished losses are not warned of", "finished losses of one part pass for a function's", "more looks are certified than were made", "a failed check counts as evidence", "a layer that was not checked counts as checked")),
    Belief("What a loss function reads beside its batch, and changes between steps, is made of no private data.", "by who trains; a warning names the tensors, arrays, buffers and frozen weights that losses follow, if they changed after one of the first three steps or after a step that was looked at, and did not just follow released weights, as a teacher does", "What the loss function read beside its batch, and changed between steps, follows from public facts and released values.",
           ("evidence/test_read_beside_batch.py::test_what_changes_beside_the_batch_is_told", "evidence/test_read_beside_batch.py::test_a_schedule_is_stated_and_not_warned_of", "evidence/test_written_between_steps.py::test_what_the_loop_writes_is_told"),
           ("losses that follow what changes beside their batch are not told", "numbers that losses follow are not stated", "buffers that the loop writes are not told", "what the loop begins to write later is not told", "one element of a teacher is on any way")),
    Belief("Declared tensors are no data.", "by `public=`", "The tensors that are listed as declared public are constants of the program: nothing in them was computed from private data.",
           ("test_declared_public.py::test_the_certificate_states_what_was_declared",), ("that declared tensors hold no data is not assumed", "a certificate does not say what was declared public")),
    Belief("A unit of privacy is a person.", "by `units=`", "All rows of one person have the same value of {column}, and nobody else's have it.",
           (_UNITS + "the_certificate_names_the_unit_and_assumes_that_it_is_a_person",), ("that a unit is a person is not assumed",)),
    Belief("A row that a dataset makes as it is read is of one example, and of one that no other row has.", "by the dataset; a warning tells of rows that look like copies of others, like pairs of a few examples, or like windows that overlap and were shuffled, in a part of them that is compared when a loader is made", "Every row of the data is made of one example, which no other row is.",
           (_CERTIFICATE + "what_a_unit_is_taken_for_has_to_be_stated", "test_copied_rows.py::test_rows_that_look_like_copies_are_told_of"), ("a certificate does not say what rows are taken for", "copies are told of nowhere", "pairs of a few examples are not told of", "windows that overlap and were shuffled are not told of")),
    Belief("Releases that were not compared are what was charged for them.", "by this package; whether any was compared is stated", "Releases that were not compared with their charge and with torch's own sums were made as those that were: the first three, and one in 512 at random.",
           ("test_witness.py::test_a_certificate_says_whether_releases_were_compared", "test_witness.py::test_a_certificate_says_that_nothing_could_be_compared"), ("a certificate says that releases were compared, and none was", "a certificate does not say that no release was compared")),
    Belief("Batches without tickets hold each example once.", "by `Unamplified()` without a loader", "No example was given to one step more than once.",
           (_CERTIFICATE + "other_plans_are_stated_and_verify",)),
    Belief("A declared end of the run, or number, is public.", "by `public_end=` and `assign_public`", "After how many steps a run ended follows from no release and no private data:",
           (_CLAIMS + "a_public_end_makes_the_steps_taken_the_claim", _CLAIMS + "a_declared_number_is_charged_with_its_reason")),
    Belief("Private parameters change by steps alone, and every weight that takes part is in this ledger.", "at every `backward`; a warning tells of the first such write, and of the first such weight. Writes through `.data` are seen after updates 1, 2, 4, 8 and so on; of sharded parameters neither is, which the certificate says", "Parameters that were written to between steps were so without private data.",
           (_BESIDE + "rows_that_a_forward_pass_writes_are_told", _BESIDE + "weights_that_another_optimizer_may_train_are_told"), ("rows that the forward pass writes leave without a word", "weights of a shared ledger are told of")),
    Belief("A learning rate, or another option, that changes follows from no private data.", "by who trains; the first step at another rate warns of schedulers that follow a metric, as `ReduceLROnPlateau` and `GreedyLR`", "Learning rates and other options of the optimizer that changed between steps follow from public facts and released values.",
           (_OPTIONS + "a_rate_that_follows_a_loss_is_warned_of", _OPTIONS + "every_option_that_changed_is_named_in_the_certificate"),
           ("a rate that follows a loss is not warned of", "options that changed are not named")),
    Belief("A drawn unit without a loss has none by itself.", "by who trains; a warning tells of the first", "Units that were drawn and had no loss had none by themselves, whatever the others were, and each loss was named as of the unit that its row was drawn with.",
           ("test_named_units.py::test_units_without_a_loss_are_told_once_and_stated",), ("units that were cut off are not told",)),
    Belief("A batch that was left out, while the iteration went on, was so for a public reason.", "by who trains; a warning tells of the first", "Batches that were drawn and not released were left out for public reasons: neither what was in them nor their losses decided it.",
           ("test_left_out.py::test_a_batch_that_is_left_out_is_told_and_named",), ("steps that losses decide to skip are not told",)),
    Belief("A clipping norm that was assigned follows from no private data.", "by who trains", "Clipping norms other than the plan's were chosen from public facts and released values alone.",
           (_CERTIFICATE + "clipping_norms_that_were_assigned_have_to_be_public",), ("clipping norms that were assigned are not assumed to be public",)),
    Belief("Nothing else looked at private data.", "by `private_data_touches=`", "not stated: whether hyper-parameters",
           (_CERTIFICATE + "what_nobody_said_is_not_taken_for_nothing",)),
    Belief("Buffers that a forward pass changes are not released, or are public.", "by who trains; a look warns of them", "Buffers that a forward pass changes, such as running statistics.",
           (_CERTIFICATE + "standard_sentences_are_demanded",), ("emptied assumptions verify",)),
)  # fmt: skip

SECTIONS = {
    "Checked while training": (("believed", "checked", "if it is not so"), CHECKED),
    "Refused": (("believed", "checked", "if it is not so"), REFUSED),
    "Stated in the certificate": (
        ("believed", "claimed", "the certificate says"),
        STATED,
    ),
}


def beliefs() -> tuple[Belief, ...]:
    """Return every row."""
    return (*CHECKED, *REFUSED, *STATED)


def found_in() -> dict[str, list[str]]:
    """Return the names of the attacks of the tests, by the list that they are in."""
    tree = ast.parse(ATTACKS.read_text("utf-8"))
    return {
        ast.unparse(node.targets[0]): [ast.unparse(name) for name in node.value.elts]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    }


def tables() -> str:
    """Return everything on the page that is made from tables, in Markdown."""
    rows = [line for title in SECTIONS for line in _section(title)]
    return "\n".join([*rows, *_attacks()])


def rewritten(page: str) -> str:
    """Return the page with the tables as they are now."""
    before, _, _ = page.partition("<!-- tables -->\n")
    return f"{before}<!-- tables -->\n{tables()}\n"


def _section(title: str) -> Iterator[str]:
    heads, rows = SECTIONS[title]
    numbers = {
        mutant.breaks: str(number)
        for number, mutant in enumerate(
            runpy.run_path(str(MUTANTS))["MUTANTS"], start=1
        )
    }
    missing = [text for row in rows for text in row.breaks if text not in numbers]
    if missing:
        raise ValueError(
            f"no mutant breaks {missing}: mend docs/beliefs.py, or the table in"
            " tests/benchmarks/mutant_table.py"
        )
    yield f"\n## {title}\n"
    yield f"| {' | '.join(heads)} | tests | mutants |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        mutants = ", ".join(numbers[text] for text in row.breaks) or "none"
        tests = _named(row.tests)
        yield f"| {row.says} | {row.when} | {row.outcome} | {tests} | {mutants} |"


def _attacks() -> Iterator[str]:
    lists = found_in()
    yield "\n## How soon it is found\n"
    yield "Losses that were silent before, given as a function, batches of 5, 16 and 64:\n"
    yield "| losses | end in an error |"
    yield "| --- | --- |"
    yield f"| {_spoken(lists['FOUND_BEFORE_A_RELEASE'])} | at step 1, before a release |"
    yield f"| {_spoken(lists['FOUND_IN_THE_FIRST_STEPS'])} | within the first 3 steps |"


def _spoken(names: Iterable[str]) -> str:
    return "; ".join(name.replace("_", " ") for name in names)


def _named(tests: Iterable[str]) -> str:
    return ", ".join(f"`{test}`" for test in tests)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text("utf-8")), encoding="utf-8")
    print(f"{len(beliefs())} beliefs", file=sys.stderr)  # noqa: T201
