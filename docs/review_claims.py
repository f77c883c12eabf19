"""What must be believed of each file of ``dp`` for a stated epsilon, and what need not.

``what_to_review.py`` makes the page ``explanation/what-to-review.md`` of these tables.
Every file that a private step can reach is in exactly one of them. Tests are named
below ``tests``; the mutants of a file are found by themselves.
"""

from typing import NamedTuple


class Claim(NamedTuple):
    """What must be true of a file.

    Attributes:
        says: The claim, in one sentence.
        tests: The tests that hold it.
    """

    says: str
    tests: tuple[str, ...]


class Checked(NamedTuple):
    """Why a file that a step reaches need not be believed.

    Attributes:
        why: What checks it while it runs, or why privacy does not depend on it.
        tests: The tests that hold that.
    """

    why: str
    tests: tuple[str, ...]


# Where a private step begins. What these files do not import, no step runs.
ROOTS = (
    "dp/optimizer/__init__.py",
    "dp/sampling/__init__.py",
    "dp/tables/__init__.py",
    "dp/selection/__init__.py",
)

# What must be believed for one CPU process may not grow beyond this unnoticed. The goal
# is 3500.
MOST_LINES = 4051

_OPTIMIZER, _MANY = "dp/test_optimizer.py::test_", "dp/test_optimizer_many.py::test_"
_GRADIENTS = "dp/per_sample/test_gradients.py::test_"
_GRAPHS = "dp/per_sample/test_known_graphs.py::test_"
_MIXING, _PRECISION = (
    "dp/per_sample/test_mixing.py::test_",
    "dp/per_sample/test_precision.py::test_",
)
_BY_OWNER = "dp/per_sample/test_by_owner.py::test_"
_APART = "dp/per_sample/test_units_apart.py::test_"
_OWNERS = "dp/per_sample/test_rules_of_owners.py::test_"
_VERIFIED = "dp/per_sample/test_verified_files.py::test_"
_ROW_LAYERS = "dp/per_sample/test_row_layers.py::test_"
_REPEATED = "dp/per_sample/test_repeated_layers.py::test_"
_REFERENCE = "dp/per_sample/test_reference.py::test_"
_VERIFICATION = "dp/per_sample/test_verification.py::test_"
_UNITS = "dp/test_units.py::test_"
_EXACT = ("dp/per_sample/test_operations.py::test_every_operation_is_exact",)
_CERTIFICATE, _LEDGER = "dp/test_certificate.py::test_", "dp/test_ledger.py::test_"
_NOISE, _ROUNDING = "dp/test_noise.py::test_", "dp/test_noise_rounding.py::test_"
_KERNEL = "dp/test_noise_kernel.py::test_"
_NOISE_VERIFIED = "dp/test_noise_verification.py::test_"
_DEVICE, _CHACHA = "dp/test_noise_device.py::test_", "dp/test_noise_chacha.py::test_"
_JOINT = "dp/test_joint_optimizer.py::test_"
_CLAIMS = "dp/test_claims.py::test_"
_ACCOUNTING, _SAMPLING = "dp/test_accounting.py::test_", "dp/test_sampling.py::test_"
_ALLOCATION = "dp/test_allocation.py::test_"
_DISJOINT = "dp/test_disjoint.py::test_"
_TUNE = "dp/test_tune.py::test_"
_QUERIES = "dp/test_queries.py::test_"
_SCALED = "dp/test_scaled_clipping.py::test_"
_QUANTILE = "dp/test_quantile_clipping.py::test_"
_SPARSE, _KEPT = "dp/test_sparse_clipping.py::test_", "dp/test_sparse_release.py::test_"
_CORRELATED = "dp/test_correlated.py::test_"
_CYCLIC = "dp/test_cyclic_sampling.py::test_"
_OF_PASSES = "dp/test_accounting_allocation.py::test_"
_RELEASE, _FAILURES = (
    "dp/distributed/test_release.py::test_",
    "dp/distributed/test_failures.py::test_",
)
_TRAINING = "dp/distributed/test_training.py::test_"
_STATISTICS, _COLUMNS, _COMMAND, _RECIPE = (
    f"dp/tables/test_{file}.py::test_"
    for file in ("statistics", "columns", "command", "recipe")
)
_BESIDE = "dp/test_beside_gradients.py::test_"
_PAID = "dp/test_paid_for.py::test_"
_ROWS = "dp/test_rows_of_tickets.py::test_"
_EVIDENCE = "dp/evidence/test_honest_losses.py::test_"
_WITNESS, _METER = "dp/test_witness.py::test_", "dp/test_meter.py::test_"
_CLIPPING, _GUARD = "dp/test_clipping.py::test_", "dp/test_guard.py::test_"

ONE_PROCESS: dict[str, dict[str, Claim]] = {
    "The step": {
        "dp/optimizer/_accounted.py": Claim("A run is paid for by the ledger that it goes on with, states what that holds, and loads no state without it.", (_LEDGER + "noise_that_was_enough_is_refused_once_more_is_planned", _OPTIMIZER + "a_state_without_a_ledger_is_refused")),
        "dp/optimizer/_checkpoint.py": Claim("A state carries its whole ledger, and a state without one is refused.", (_OPTIMIZER + "a_state_without_a_ledger_is_refused", "dp/test_optimizer_checkpoint.py::test_a_state_whose_ledger_was_altered_is_refused")),
        "dp/_mechanism/witness.py": Claim("The sums that get noise are torch's own, of gradients no longer than was charged; one charge covers that noise; and the optimizer sees just that, divided by a public constant: in elements that a generator of the operating system's seed picks, of the first three releases and of one in 512 after that. What differs raises before the optimizer moves a parameter.", (_WITNESS + "a_defect_between_gradients_and_update_is_noticed", _WITNESS + "what_is_wrong_later_ends_the_run", _WITNESS + "an_honest_run_is_admitted")),
        "dp/_mechanism/picked_elements.py": Claim("Elements are picked by a generator of the operating system's seed, and none is taken for released that lies outside of what got noise, or where another one does.", (_WITNESS + "a_defect_between_gradients_and_update_is_noticed",)),
        "dp/_mechanism/metering.py": Claim("A release is counted once, where its noise is added, by the standard deviation that was used and by how its loader draws, which is as planned.", (_METER + "an_honest_ledger_covers_what_was_counted", _WITNESS + "a_loader_of_other_draws_is_noticed")),
        "dp/_mechanism/batch.py": Claim("A release has as many losses as its ticket counts examples, and a ticket is spent by one release.", (_OPTIMIZER + "a_step_on_part_of_the_batch_is_refused", _OPTIMIZER + "a_batch_is_good_for_one_step_only")),
        "dp/_mechanism/loss_units.py": Claim("Each loss counts for the unit that the loader drew its row for, or for a drawn unit that the caller names.", (_UNITS + "a_unit_is_clipped_once_however_many_rows_it_has", _UNITS + "a_batch_that_was_split_by_hand_is_refused", _UNITS + "units_that_were_not_drawn_are_refused")),
        "dp/_mechanism/paid_for.py": Claim("While they live, parameters and rows of a dataset are charged by no ledger that lacks what another one charged for them.", (_PAID + "a_notebook_cell_that_runs_again_is_refused_or_goes_on", _PAID + "rows_that_two_datasets_share_are_recognised", _PAID + "a_checkpoint_carries_what_was_paid")),
        "dp/_mechanism/step_state.py": Claim("Before a release, `p.grad` holds nothing that was computed from the batch, and a half-made sum is never added to.", (_OPTIMIZER + "gradients_never_show_before_the_noise_is_in", "dp/test_crash.py::test_a_crash_at_any_line_of_backward_leaves_no_half_sum")),
    },
    "Around the step": {
        "dp/optimizer/_guard.py": Claim("No optimizer moves a private parameter other than through a private step.", (_GUARD + "the_wrapped_optimizer_cannot_step_by_itself", _GUARD + "another_optimizer_cannot_step_private_parameters")),
        "dp/optimizer/_registry.py": Claim("A parameter leads to every private optimizer that holds it, exchanged ones included.", (_GUARD + "parameters_that_take_the_place_of_others_are_protected",)),
        "dp/optimizer/_transparent.py": Claim("The parameter groups that are privatised are those that the wrapped optimizer updates.", ("dp/test_transparent.py::test_declared_data_is_read_written_and_deleted_on_the_owner",)),
        "dp/optimizer/_step_hooks.py": Claim("Hooks see a step before its gradients or after its release, never the sums between.", ("dp/test_transparent_hooks.py::test_hooks_around_a_private_step_see_what_was_released",)),
        "dp/_checks.py": Claim("A number outside its range is refused; NaN is outside every range.", ("dp/test_checks.py::test_bad_values_are_named",)),
    },
    "Noise": {
        "dp/noise/_gaussian.py": Claim("Every element gets noise of the standard deviation that was asked for, and that number is returned.", ("dp/test_noise_statistics.py::test_noise_has_the_stated_scale_and_shape", _NOISE + "the_stddev_that_was_used_is_returned")),
        "dp/noise/_host/verification.py": Claim("Elements that a generator of the operating system's seed picks got the noise that 24 random bits of their own say, at the first three calls and at one in 128 after that, and what differs raises before the release.", (_NOISE_VERIFIED + "a_defect_of_the_noise_is_noticed", _NOISE_VERIFIED + "chunks_that_share_bits_are_noticed")),
        "dp/noise/_host/exact.py": Claim("Elements that 24 bits cannot round are decided by more.", (_ROUNDING + "what_float64_cannot_decide_is_decided_by_more_digits",)),
        "dp/_keystream.py": Claim("Keys come from the operating system, and no part of a key stream is used twice.", (_NOISE + "a_keystream_is_aes_in_counter_mode", _NOISE + "a_forked_process_draws_other_noise")),
    },
    "Sampling": {
        "dp/sampling/_draws.py": Claim("A draw has the law of one coin for each example, of the stated probability.", ("dp/test_sampling_draws.py::test_the_number_of_winners_is_binomial", "dp/test_sampling_draws.py::test_every_subset_is_as_likely", "dp/test_sampling_statistics.py::test_the_draws_pass_every_test")),
        "dp/sampling/_random_draws.py": Claim("Every draw is kept, also an empty one, and the ranks' shares have each unit once.", (_SAMPLING + "a_pass_of_empty_batches_is_a_whole_pass", "dp/test_units.py::test_the_rows_of_a_unit_stay_on_one_rank")),
        "dp/sampling/_loader.py": Claim("The batch that is yielded is the one that was drawn, and its ticket counts it.", (_SAMPLING + "the_ticket_belongs_to_the_batch_yielded_last", _SAMPLING + "a_pass_does_not_survive_a_fork")),
        "dp/sampling/_ticketed.py": Claim("Every batch that a loader yields comes with the ticket of its own draw.", (_SAMPLING + "the_ticket_belongs_to_the_batch_yielded_last", _SAMPLING + "a_pass_that_was_broken_off_leaves_nothing_behind")),
        "dp/sampling/_ticket.py": Claim("No two batches have the same ticket.", (_SAMPLING + "serials_rise_over_all_loaders_of_a_process",)),
    },
    "Ledger": {
        "dp/ledger/_meter.py": Claim("Nothing is stated of charges that do not cover every release that was counted, and every charge of a state that was loaded.", (_METER + "a_charge_that_is_lost_makes_every_epsilon_infinite", _METER + "charges_cover_what_costs_no_more", _METER + "what_a_state_says_is_not_lost")),
        "dp/ledger/_claim.py": Claim("Nothing is claimed of numbers, or of an end, that releases may have decided, but what the plan or its Renyi filter bounds.", (_CLAIMS + "a_run_that_ends_early_costs_what_its_plan_costs", _CLAIMS + "noise_above_the_plans_costs_what_was_planned", _CLAIMS + "what_costs_more_than_planned_is_refused")),
    },
    "Accounting": {
        "dp/certificate/_recomputation.py": Claim("Before an epsilon is certified, `dp_accounting` alone composes every charge, and what remained of the plan, by their own numbers, and finds no larger one.", ("dp/test_recomputation.py::test_a_defect_of_the_accounting_is_noticed", "dp/test_recomputation.py::test_what_is_stated_is_what_the_charges_compose_to")),
    },
    "Plan": {
        "dp/plan/_plan.py": Claim("The probability, relation and delta that are charged and stated are those of the plan, and nothing is amplified without sampling.", ("dp/test_plan.py::test_releases_are_what_the_steps_release", "dp/test_plan.py::test_the_loader_samples_as_planned")),
    },
    "Per-example gradients": {
        "dp/per_sample/_engine.py": Claim("There is one gradient for each loss; an example without a finite loss has none.", (_GRADIENTS + "gradients_are_those_of_the_loop", _GRADIENTS + "examples_without_a_finite_loss_have_no_part")),
        "dp/per_sample/_full_precision.py": Claim("Norms and sums are computed in float32 at least, whatever the model is allowed.", (_PRECISION + "one_example_is_not_longer_than_the_bound_under_autocast", _PRECISION + "products_are_not_rounded_while_norms_and_sums_are_found")),
        "dp/per_sample/_isolation/mixing_flags.py": Claim("No flag of an operation makes its gradient depend on the rest of the batch.", (_APART + "flags_that_read_the_whole_batch_are_refused_by_name",)),
        "dp/per_sample/_isolation/units.py": Claim("Losses of one unit, and only these, have its number.", (_APART + "a_unit_of_several_losses_is_clipped_once", _APART + "units_that_fit_no_losses_are_refused")),
        "dp/per_sample/_passes.py": Claim("All passes of a batch begin with the same losses, and each unit's are multiplied by its own number.", (_GRADIENTS + "gradients_are_those_of_the_loop", _REFERENCE + "a_norm_of_one_unit_is_noticed_when_that_unit_is_chosen")),
        "dp/per_sample/_isolation/verification.py": Claim("The first passes, and others that cannot be foreseen, are verified, and what differs raises before the batch is released.", (_VERIFICATION + "verification_is_random_after_the_first_passes", _VERIFIED + "a_defect_that_lets_units_mix_is_noticed")),
        "dp/per_sample/_isolation/trial.py": Claim("Norms and sums of losses that are multiplied by powers of two are compared with the private pass, to the last bit on a CPU.", (_VERIFICATION + "a_hook_that_mixes_is_found_before_the_first_release", _VERIFICATION + "later_verifications_compare_sums_as_well")),
        "dp/per_sample/_isolation/reference.py": Claim("Sums are compared with torch's own for weights, and norms for a unit, that the operating system draws.", (_VERIFIED + "a_gradient_that_is_not_torchs_own_is_noticed", _REFERENCE + "norms_that_are_too_small_are_noticed_in_every_group", _REFERENCE + "one_wrong_gradient_of_many_is_noticed")),
        "dp/per_sample/_isolation/rounding.py": Claim("What two computations of a sum may differ by is rounding, and less than an error of a gradient.", (_REFERENCE + "activations_of_another_unit_are_noticed", _REFERENCE + "rounding_is_no_alarm")),
        "dp/per_sample/_isolation/own_sums.py": Claim("What two computations of a sum of clipped gradients may differ by is rounding.", (_WITNESS + "a_part_of_a_batch_that_is_lost_is_noticed", _WITNESS + "an_honest_run_is_admitted")),
        "dp/per_sample/_isolation/ordinary_pass.py": Claim("No rule, owner or cache takes part in torch's own pass.", (_REFERENCE + "hooks_on_parameters_are_no_alarm", _REFERENCE + "parameters_that_take_no_part_have_sums_of_zero")),
        "dp/per_sample/_isolation/powers.py": Claim("Powers of two are drawn by the operating system, in a range that no dtype leaves.", (_VERIFICATION + "no_alarm_where_gradients_underflow_or_saturate", _VERIFICATION + "a_verification_leaves_the_users_random_numbers_alone")),
    },
}  # fmt: skip

# Of a run whose releases the witness does not compare, and the ledger also of one in
# passes or rounds, which the meter does not count; of any other, none need be believed.
UNCOMPARED = {
    "dp/optimizer/_private_step.py": Claim(
        "`step` passes every trainable parameter to the mechanism, and the wrapped optimizer sees what was released, divided by a public constant.",
        (
            _OPTIMIZER + "the_noise_has_the_planned_standard_deviation",
            _OPTIMIZER + "gradients_never_show_before_the_noise_is_in",
        ),
    ),
    "dp/_mechanism/mechanism.py": Claim(
        "A release is the clipped sum of one batch; it is charged, then gets noise of the charged scale on every element that it releases.",
        (
            _OPTIMIZER + "noise_of_another_size_than_was_charged_is_never_released",
            "dp/test_crash.py::test_a_crash_at_any_line_of_a_step_loses_no_charge",
        ),
    ),
    "dp/_mechanism/private_run.py": Claim(
        "A run's parts share one plan, ledger and clipping rule, and a debugging seed is told to the ledger.",
        (
            "dp/test_debugging_seed.py::test_it_says_everywhere_that_nothing_is_private",
            "dp/test_debugging_seed.py::test_a_loader_that_is_attached_is_seeded_too",
        ),
    ),
    "dp/_mechanism/current_values.py": Claim(
        "Clipping, noise and the charge of a step read the same two numbers.",
        (
            "dp/test_schedule.py::test_noise_and_charges_follow_the_plans_schedules",
            "dp/test_schedule.py::test_clipping_follows_the_schedule_of_the_norm",
        ),
    ),
    "dp/_mechanism/sums.py": Claim(
        "A sum is what gradients wrote to it, or zero, in float32 or wider, and the buffers hold every element once.",
        ("dp/test_sums.py::test_every_parameter_has_zeros_of_its_own",),
    ),
    "dp/optimizer/_dp_optimizer.py": Claim(
        "A mechanism gets the plan, the loader, the rule and the ledger that were asked for, and every loss that is given.",
        (
            _OPTIMIZER + "the_noise_has_the_planned_standard_deviation",
            _OPTIMIZER + "a_clipping_rule_must_bound_what_the_plan_says",
        ),
    ),
    "dp/optimizer/_validate.py": Claim(
        "The loader and the clipping rule are those that the plan claims.",
        (
            _OPTIMIZER + "a_clipping_rule_must_bound_what_the_plan_says",
            _OPTIMIZER + "a_loader_of_another_rate_cannot_be_attached",
        ),
    ),
    "dp/ledger/_ledger.py": Claim(
        "Charges and failures are only ever added; what is spent is computed from all of them.",
        (
            _LEDGER + "what_is_spent_is_what_the_releases_cost",
            _LEDGER + "going_back_to_an_older_checkpoint_forgets_nothing",
        ),
    ),
    "dp/ledger/_terms.py": Claim(
        "A release is charged as the one before it only if all of its numbers are equal, and what the plan says of its step.",
        (
            _LEDGER + "noise_that_was_enough_is_refused_once_more_is_planned",
            _LEDGER + "more_noise_is_charged_as_what_each_step_was_planned_with",
        ),
    ),
    "dp/ledger/_segments.py": Claim(
        "Equal charges in a row are counted, and of two states of one segment the one counts that goes on from the other.",
        (
            _LEDGER + "going_back_to_an_older_checkpoint_forgets_nothing",
            _LEDGER + "a_state_that_contradicts_what_is_known_is_refused",
        ),
    ),
    "dp/clipping/_rules.py": Claim(
        "Whatever the gradients are, one example contributes at most C to a sum, after rounding.",
        (
            _CLIPPING + "no_contribution_is_longer_than_the_sensitivity",
            _CLIPPING + "a_non_finite_norm_has_factor_zero",
        ),
    ),
}

# They refuse loops that break the first assumption that a certificate states: one
# example's loss depends on that example and the parameters only. Where it holds, no
# epsilon rests on them; where it does not, they are what notices, before dp.evidence.
REFUSALS: dict[str, Claim] = {
    "dp/per_sample/_graph/walk.py": Claim("No tensor without a graph that meets parameters or scales losses stays unseen.", (_GRADIENTS + "gradients_are_those_of_the_loop", _MIXING + "data_that_meets_parameters_only_where_it_is_mixed_is_refused")),
    "dp/per_sample/_graph/uses.py": Claim("A use is described by what its node keeps.", (_GRAPHS + "another_input_that_needs_a_gradient_is_another_graph",)),
    "dp/per_sample/_graph/untracked_inputs.py": Claim("What a node holds without an edge in the graph is compared between batches.", (_MIXING + "what_all_examples_share_may_not_change", _MIXING + "losses_scaled_by_a_tensor_of_one_element_are_refused")),
    "dp/per_sample/_graph/public.py": Claim("Only a declared tensor, a view of it or a copy with equal values counts as public.", (_MIXING + "what_all_examples_share_may_be_public", _APART + "a_tensor_that_is_not_public_does_not_become_so")),
    "dp/per_sample/_isolation/checks.py": Claim("Tensors without a graph that all units share are the same in every batch, and do not scale the losses.", (_MIXING + "what_all_examples_share_may_not_change", _MIXING + "losses_scaled_by_a_tensor_of_one_element_are_refused")),
    "dp/per_sample/_isolation/data_rows.py": Claim("A row of data is read for one unit, and in the order of the losses unless units are given.", (_APART + "one_tensor_of_data_is_not_read_for_two_units", _MIXING + "examples_in_another_order_are_refused")),
    "dp/per_sample/_known_graphs.py": Claim("Every batch passes all checks of data and shared tensors, whether its graph was known or not.", (_APART + "rows_that_begin_to_move_are_noticed", _MIXING + "what_all_examples_share_may_not_change")),
    "dp/per_sample/_graph/nodes.py": Claim("A number of the program is told from a tensor by its node, and a nested tensor from a dense one.", (_MIXING + "a_torch_that_names_things_otherwise_is_refused",)),
    "dp/per_sample/_isolation/owners.py": Claim("Owners that are written out, joined or made regular again stay the same owners.", (_OWNERS + "integers_say_the_same_as_rows", _BY_OWNER + "any_owners_of_rows_are_as_by_a_loop")),
}  # fmt: skip

# Only runs with units of several rows, or whose units lie along no axis, rest on these.
UNITS: dict[str, Claim] = {
    "dp/sampling/_units.py": Claim("A unit is drawn with all of its rows, or with a random part of them that depends on no other unit.", (_UNITS + "units_are_drawn_whole_and_in_one_piece", _UNITS + "at_most_so_many_rows_of_a_unit_are_in_a_batch")),
}  # fmt: skip

# Only runs that ask for them rest on these.
OPTIONS: dict[str, Claim] = {
    "dp/optimizer/_joint_optimizer.py": Claim("The groups that are privatised are those of all optimizers that are joined.", (_JOINT + "groups_and_state_are_those_of_the_optimizers", _JOINT + "one_release_serves_all")),
    "dp/sampling/_passes.py": Claim("With `RandomAllocation` or `DisjointBatches`: the numbers of the scheme are in their range, and those of the plan.", (_ALLOCATION + "a_plan_without_a_bound_is_refused", _DISJOINT + "a_plan_that_is_no_passes_is_refused")),
    "dp/clipping/_quantile.py": Claim("With `QuantileClipping`: the norm of a step follows from what was released, and gradients are clipped as by flat clipping.", (_QUANTILE + "the_norm_moves_towards_the_quantile",)),
    "dp/_mechanism/norm_count.py": Claim("With `QuantileClipping`: an example moves the count by 1/2, and the count is noised as one more element of the sums.", (_QUANTILE + "one_example_moves_the_count_by_a_half", _QUANTILE + "noise_of_gradients_and_count_is_what_was_charged")),
    "dp/clipping/_sparse.py": Claim("With `SparseClipping`: an example moves the counts of rows by the root of `rows_per_example` at most, and gradients are clipped as by flat clipping.", (_SPARSE + "one_example_moves_the_counts_by_the_root_of_its_rows_at_most",)),
    "dp/_mechanism/row_map.py": Claim("With `SparseClipping`: an example counts in the rows that it touched, and which rows are kept follows from noisy counts alone.", (_SPARSE + "one_example_moves_the_map_by_no_more", _KEPT + "noise_of_counts_and_of_kept_rows_is_what_was_charged", _KEPT + "rows_that_are_selected_without_noise_do_not_replay", _KEPT + "sums_of_unkept_rows_do_not_replay")),
    "dp/clipping/_scaled.py": Claim("With `ScaledClipping`: gradients times public scales are clipped as by flat clipping.", (_SCALED + "the_rule_clips_as_flat_clipping_does",)),
    "dp/per_sample/_scaled_norms.py": Claim("With `ScaledClipping`: norms of scaled gradients are no smaller than they are.", (_SCALED + "norms_of_scaled_gradients_are_those_of_the_loop",)),
    "dp/optimizer/_second_moments.py": Claim("With `ScaledClipping`: scales are functions of what was released before.", (_SCALED + "subclasses_are_refused_as_their_state_may_mean_something_else", _SCALED + "scales_stay_those_that_gradients_were_clipped_with")),
    "dp/ledger/_charge.py": Claim("With groups, passes, rounds or a Renyi filter: a charge is accounted as what it was, or as planned where that costs more.", (_CLAIMS + "noise_above_the_plans_costs_what_was_planned",)),
    "dp/accounting/_accountant.py": Claim("With groups, passes, rounds or a Renyi filter: epsilon is at least the true privacy loss of the releases at this delta.", (_ACCOUNTING + "epsilon_lies_between_a_lower_bound_and_other_accountants", _ACCOUNTING + "gaussian_releases_cost_what_the_closed_form_says")),
    "dp/accounting/_composition.py": Claim("With groups, passes, rounds or a Renyi filter: releases that are too many to compose are taken for larger ones, never for smaller ones.", ("dp/test_accounting_exact.py::test_what_costs_too_much_is_taken_for_unsampled", "dp/test_accounting_exact.py::test_epsilon_is_true_and_tight")),
    "dp/accounting/_release.py": Claim("With groups, passes, rounds or a Renyi filter: equal releases are counted, and none is lost.", (_ACCOUNTING + "order_and_grouping_make_no_difference",)),
    "dp/accounting/_dp_events.py": Claim("With groups, passes, rounds or a Renyi filter: a release is passed to `dp_accounting` as the event that it is.", (_ACCOUNTING + "epsilon_is_that_of_dp_accountings_own_accountant",)),
    "dp/accounting/_selection.py": Claim("With `dp.tune`: the best of a random number of runs costs no more than Papernot and Steinke prove.", ("dp/test_selection_accounting.py::test_divergences_are_those_of_dp_accounting", "dp/test_selection_accounting.py::test_anchors_are_reproduced")),
    "dp/selection/_draw.py": Claim("With `dp.tune`: the number of runs and their candidates have the stated laws, by coins of the operating system.", (_TUNE + "the_number_of_runs_has_its_law", _TUNE + "candidates_are_drawn_alike")),
    "dp/selection/_progress_file.py": Claim("With `dp.tune`: the number of runs is drawn once, is readable for the owner alone, and is removed at the end.", (_TUNE + "an_interruption_draws_no_other_number_of_runs", _TUNE + "only_the_best_result_is_kept")),
    "dp/selection/_watched.py": Claim("With `dp.tune`: each run charged the releases of its plan and nothing else.", (_TUNE + "a_run_must_follow_its_plan", _TUNE + "a_run_with_less_noise_than_planned_is_refused")),
    "dp/selection/_tune.py": Claim("With `dp.tune`: only the best run leaves, and nothing is printed.", (_TUNE + "the_best_run_is_published_with_what_all_of_it_cost",)),
    "dp/certificate/_tuning.py": Claim("With `dp.tune`: the certificate states the worst candidate's epsilon and every condition.", (_TUNE + "the_certificate_states_its_conditions_and_verifies", _TUNE + "candidates_may_have_plans_of_their_own")),
    "dp/query/_statistic.py": Claim("A vector of sums gets noise of the scale that it is charged for.", (_STATISTICS + "noise_of_another_scale_than_was_charged_is_not_released", _QUERIES + "noise_has_the_planned_scale")),
    "dp/query/_queries.py": Claim("With `dp.query`: a unit of privacy adds a vector of norm 1 at most, and each query is recorded before its noise is drawn.", (_QUERIES + "one_unit_moves_an_answer_by_its_sensitivity_at_most", _QUERIES + "a_query_is_recorded_before_noise_is_drawn")),
    "dp/ledger/_asked.py": Claim("With `dp.query`: a planned query is asked once, in all processes of a run.", (_QUERIES + "a_query_is_asked_once", _QUERIES + "runs_that_asked_the_same_query_fail_when_they_meet")),
    "dp/accounting/_query.py": Claim("With `dp.query`: a query is accounted as one release on all units.", (_QUERIES + "queries_are_part_of_every_epsilon",)),
    "dp/optimizer/_adapts.py": Claim("With `QuantileClipping` or `SparseClipping`: norms are only found, and rows selected, where the plan's charges allow others at every step.", (_QUANTILE + "plans_that_do_not_fit_are_refused", _SPARSE + "correlated_noise_is_refused")),
    "dp/ledger/_norm_range.py": Claim("With `QuantileClipping`: releases whose norm moved are counted together between their norms, and none is left out.", (_QUANTILE + "the_ledger_does_not_grow_with_norms_that_move", _QUANTILE + "a_state_that_contradicts_moving_norms_is_refused")),
    "dp/accounting/_counted.py": Claim("With `QuantileClipping` or `SparseClipping`: sum and counts have together at least the noise that they are charged as.", (_QUANTILE + "the_two_never_have_less_noise_together_than_is_charged", _QUANTILE + "an_example_moves_the_pair_by_one_over_sigma", _SPARSE + "the_two_never_have_less_noise_together_than_is_charged")),
    "dp/sampling/_allocation_loader.py": Claim("With `RandomAllocation`: each unit is in one batch of a pass, allocated anew for every pass, and the batch's ticket says which.", (_ALLOCATION + "every_example_is_in_one_batch_of_each_pass", _ALLOCATION + "a_pass_is_allocated_anew_every_time", _ALLOCATION + "batches_hold_what_their_tickets_count")),
    "dp/sampling/_disjoint_loader.py": Claim("With `DisjointBatches`: batches are assigned as its scheme says, by coins or by a random order that no data decides.", (_DISJOINT + "every_example_is_in_one_batch_of_each_pass", _DISJOINT + "the_order_depends_on_no_data_and_no_seed", _DISJOINT + "one_example_changes_one_step_of_a_pass")),
    "dp/accounting/_disjoint.py": Claim("With `DisjointBatches`: a pass, or a part of one, costs one release on all of the data.", (_DISJOINT + "a_pass_costs_one_release_on_all_data", _DISJOINT + "a_group_is_at_worst_in_one_step", _DISJOINT + "every_accountant_sees_one_release_a_pass")),
    "dp/ledger/_paid_pass.py": Claim("With `RandomAllocation`, `DisjointBatches` or `CyclicPoisson`, whose rounds are passes here: a pass is charged whole at its first release, and a later release is free only if it is another step of that pass, with at least its noise.", (_ALLOCATION + "a_pass_is_charged_whole_before_its_first_release", _ALLOCATION + "an_interrupted_pass_stays_charged_and_another_one_begins", _ALLOCATION + "a_step_of_a_pass_is_released_once", _ALLOCATION + "noise_below_the_plan_is_refused_and_more_of_it_is_not")),
    "dp/sampling/_cyclic_loader.py": Claim("With `CyclicPoisson`: a unit has one group in an iteration, by a coin, and is drawn in that group's turns alone, each by a coin of its own; the ticket says which turn it is.", (_CYCLIC + "an_example_is_in_steps_of_one_group", _CYCLIC + "draws_are_as_likely_as_stated", _CYCLIC + "every_iteration_has_groups_of_its_own", _CYCLIC + "tickets_know_their_round_and_position")),
    "dp/accounting/_rounds.py": Claim("With `CyclicPoisson`: a round costs one Poisson sample at the coin of an eligible unit.", (_CORRELATED + "a_round_costs_one_poisson_sample",)),
    "dp/noise/_banded.py": Claim("With `BandedNoise`: the coefficients that sums are multiplied with have norm 1 at most, and are no more than there are groups.", (_CORRELATED + "no_column_is_longer_than_one_by_as_much_as_a_rounding", _CORRELATED + "more_coefficients_than_bands_are_refused")),
    "dp/_mechanism/correlated.py": Claim("With `BandedNoise`: a unit adds a vector of the clipping norm at most to the noised sums of all steps from one that it is in to the next one; what is released follows from noised sums, and no state holds a sum.", (_CORRELATED + "one_participation_adds_a_vector_of_the_clipping_norm", _CORRELATED + "a_skipped_step_does_not_bring_participations_closer", _CORRELATED + "sums_of_another_clipping_norm_count_in_units_of_theirs", _CORRELATED + "releases_follow_from_noisy_sums", _CORRELATED + "no_state_holds_anything_of_the_recursion")),
    "dp/sampling/_cyclic_scheme.py": Claim("With `CyclicPoisson`: the numbers of the scheme are in their range, and those of the plan.", (_CYCLIC + "arguments_that_contradict_the_scheme_are_refused", _CYCLIC + "a_loader_of_another_scheme_is_refused", _CORRELATED + "a_plan_without_a_bound_is_refused")),
    "dp/sampling/_one_charge.py": Claim("With `RandomAllocation`, `DisjointBatches` or `CyclicPoisson`: a plan has whole passes or rounds, each with one noise multiplier and one norm, and what no bound is proven for is refused.", (_CORRELATED + "a_plan_without_a_bound_is_refused",)),
    "dp/accounting/_renyi.py": Claim("With `renyi_order`: epsilon at an order is that of Canonne, Kamath and Steinke, of divergences that `dp_accounting` computes.", (_CLAIMS + "the_cost_at_an_order_is_the_studys", _CLAIMS + "a_filter_admits_any_noise_until_its_epsilon_is_spent")),
    "dp/accounting/_own_losses.py": Claim("With `RandomAllocation`, which `dp_accounting` does not know: the losses of a pass are composed once for each pass. Other releases it composes by itself before a certificate is written.", (_OF_PASSES + "anchors_are_met_to_their_digits", _CERTIFICATE + "losses_that_err_are_not_certified")),
    "dp/accounting/_allocation_losses.py": Claim("With `RandomAllocation`: a pass costs no more than its losses, in both directions and for every epsilon.", (_OF_PASSES + "no_epsilon_is_below_a_lower_bound", _OF_PASSES + "two_steps_are_as_by_quadrature", _OF_PASSES + "both_directions_are_one_law")),
    "dp/accounting/_spread_laws.py": Claim("With `RandomAllocation`: a law is only ever spread, with its mass and mean.", (_OF_PASSES + "a_spread_keeps_mass_and_mean", _OF_PASSES + "a_coarser_grid_is_never_a_smaller_bound")),
    "dp/per_sample/_compile_backend.py": Claim("With `dp.compile_backend`: what is compiled holds no parameter, and hides nothing of what mixes units.", ("dp/per_sample/test_compiled.py::test_other_backends_are_refused", _MIXING + "losses_that_mix_examples_are_refused_when_compiled")),
    "dp/per_sample/_grad_sample.py": Claim("Gradients of another library: they are taken for what they say they are, for one batch.", ("dp/test_grad_samples.py::test_losses_for_a_batch_that_has_them_are_refused",)),
    "dp/noise/_torch_generators.py": Claim('With `rng="fast"`: a generator is seeded anew by the operating system. The certificate then says *unknown*.', (_NOISE + "a_generator_is_seeded_anew_in_another_process",)),
}  # fmt: skip

# Only runs on a table whose columns are scaled privately rest on these.
TABLES: dict[str, Claim] = {
    "dp/tables/_release.py": Claim("A statistic is charged, then gets noise of the charged scale; that is certified with what it is.", (_STATISTICS + "a_statistic_is_charged_before_noise_is_drawn", _STATISTICS + "noise_has_the_charged_scale", _STATISTICS + "statistics_are_certified_with_what_they_are")),
    "dp/tables/_histogram.py": Claim("A row adds a vector of exactly the stated norm to the counts.", (_STATISTICS + "a_row_is_counted_once_a_column",)),
    "dp/tables/_moments.py": Claim("A row adds a vector of at most the stated norm to the sums, rounding included, and sums are exact.", (_STATISTICS + "no_row_moves_the_moments_further_than_stated", _STATISTICS + "rounding_does_not_lengthen_a_row", _STATISTICS + "sums_do_not_depend_on_the_order_of_rows")),
    "dp/tables/_values.py": Claim("A value lies in exactly one cell.", (_STATISTICS + "a_row_is_counted_once_a_column", _COLUMNS + "a_number_lies_in_one_cell")),
    "dp/tables/_parsing.py": Claim("What a text means follows from it alone.", (_COMMAND + "one_row_does_not_change_how_others_are_read",)),
    "dp/tables/_fit.py": Claim("Features are made of what was released or declared.", (_COLUMNS + "what_is_declared_is_not_measured", _COMMAND + "each_release_is_charged_for_the_noise_that_it_gets")),
    "dp/tables/_encoder.py": Claim("A row's features follow from that row and the encoder.", (_COLUMNS + "features_are_bounded",)),
    "dp/tables/_recipe.py": Claim("Every noise multiplier, probability and number of steps follows from public numbers.", (_RECIPE + "statistics_and_training_cost_the_target_together",)),
}  # fmt: skip

CERTIFICATE: dict[str, Claim] = {
    "dp/ledger/_remarks.py": Claim("Whatever is known of one charge's noise, public tensors and assumptions, every certificate of it says.", ("dp/test_remarks.py::test_noise_of_earlier_steps_is_stated_as_it_was", "dp/test_remarks.py::test_what_others_saw_of_earlier_steps_is_stated")),
    "dp/certificate/_run.py": Claim("A run has every charge of its ledger.", (_CERTIFICATE + "it_states_what_the_ledger_was_charged",)),
    "dp/certificate/_document.py": Claim("The statement is about all runs that it names; what they share counts once.", (_CERTIFICATE + "what_two_certificates_share_counts_once", _CERTIFICATE + "several_optimizers_on_one_dataset_are_composed")),
    "dp/certificate/_repeats.py": Claim("Nothing that one of several certificates states is lost, but for what another one states, too.", (_CERTIFICATE + "what_two_certificates_share_counts_once", "dp/test_claims.py::test_what_remained_of_each_fork_counts", "dp/test_queries.py::test_a_run_that_only_answered_is_no_part_of_another")),
    "dp/certificate/_numbers.py": Claim("Every number is computed from all charges of all runs.", (_CERTIFICATE + "it_states_what_the_ledger_was_charged", _CERTIFICATE + "other_plans_are_stated_and_verify")),
    "dp/accounting/_curve.py": Claim("Between computed points the curve has the epsilon of the next one.", (_ACCOUNTING + "the_curve_bounds_every_point",)),
    "dp/accounting/_group_losses.py": Claim("The loss of a group is that of `dp_accounting`.", (_CERTIFICATE + "losses_of_a_group_are_those_of_dp_accounting",)),
    "dp/accounting/_pmf.py": Claim("How many of a group are in a batch is binomial.", (_CERTIFICATE + "losses_of_a_group_are_those_of_dp_accounting",)),
    "dp/accounting/_groups.py": Claim("The bound of a group holds for every change of so many examples.", (_CERTIFICATE + "both_ways_cost_a_group_the_same", "dp/test_accounting_exact.py::test_epsilon_is_true_and_tight")),
    "dp/accounting/_risk.py": Claim("Every number of a risk bounds what it names, for one unit and for groups.", ("dp/test_risk.py::test_risk_of_a_gaussian_is_the_exact_one_rounded_up", "dp/test_risk.py::test_a_chain_of_changes_bounds_a_group_that_is_replaced", "dp/test_risk.py::test_a_renyi_divergence_bounds_what_has_it")),
    "dp/accounting/_deltas.py": Claim("Delta is that of the losses that epsilon is read from, the larger one of both directions.", ("dp/test_risk.py::test_no_test_of_a_sampled_release_is_better_than_stated", "dp/test_risk.py::test_dp_accountings_accountants_find_the_same")),
    "dp/accounting/_trade_off.py": Claim("No attack reaches more than its bound by deltas.", ("dp/test_risk.py::test_no_test_of_a_sampled_release_is_better_than_stated", "dp/test_risk.py::test_odds_exceed_the_factor_in_no_more_runs_than_stated")),
    "dp/accounting/_agreement.py": Claim("Nothing is certified if `dp_accounting` finds another epsilon of the same releases.", (_CERTIFICATE + "losses_that_err_are_not_certified",)),
}  # fmt: skip

GPU: dict[str, Claim] = {
    "dp/noise/_device/noise.py": Claim("A device rounds every element, long vectors included.", (_DEVICE + "long_vectors_are_rounded_in_parts", "dp/test_noise_statistics.py::test_noise_rounded_where_the_sums_are_has_the_stated_scale_and_shape")),
    "dp/noise/_device/float32_stage.py": Claim("What 16 bits and float32 decide, they decide as the host does.", (_DEVICE + "a_device_rounds_every_cell_as_the_host_does",)),
    "dp/noise/_device/float64_stage.py": Claim("What is left is decided by float64, or on the host.", (_DEVICE + "the_last_resort_is_the_hosts", _DEVICE + "float32_could_not_decide_alone")),
    "dp/noise/_chunks.py": Claim("Every element of every tensor is in exactly one chunk.", (_NOISE + "chunks_cover_every_element_once",)),
    "dp/noise/_host/lattice.py": Claim("Results lie on a lattice, and what 24 bits leave of a normal number is within the reach that the table gives.", (_ROUNDING + "every_result_lies_on_the_lattice", _ROUNDING + "every_point_is_within_its_reach")),
    "dp/noise/_device/chacha.py": Claim("Words are ChaCha20's under a key of the operating system, and none is used twice.", (_CHACHA + "words_are_those_of_chacha20", _DEVICE + "every_call_has_a_key_of_its_own")),
    "dp/noise/_device/host_words.py": Claim("Words that the host draws for a device are used once.", (_DEVICE + "words_are_shared_out_among_threads",)),
    "dp/noise/_load_kernel.py": Claim("A kernel is used only after it did what OpenSSL, torch or numpy does.", (_CHACHA + "a_kernel_that_writes_anything_else_is_not_used", _CHACHA + "a_rounding_kernel_that_errs_anywhere_is_not_used")),
}  # fmt: skip

RANKS: dict[str, Claim] = {
    "dp/_ranks.py": Claim("A rank knows its number and how many there are.", ("dp/distributed/test_loader.py::test_every_example_belongs_to_exactly_one_rank",)),
    "dp/_mechanism/fingerprint.py": Claim("Different datasets, or parameters, have different fingerprints.", ("dp/test_fingerprint.py::test_different_datasets_have_different_fingerprints",)),
    "dp/distributed/_exchange.py": Claim("Every element of a total is in the share of exactly one rank. In one process all sums are one share, which is noised whole.", (_RELEASE + "every_element_is_noised_once_whatever_the_buckets_are", _RELEASE + "the_reduced_noise_has_the_planned_variance_and_is_the_same_on_all_ranks")),
    "dp/distributed/_world.py": Claim("All ranks release the same step under the same plan, or none does.", (_FAILURES + "ranks_that_differ_are_told_in_what", _FAILURES + "an_error_on_one_rank_stops_all_at_once")),
    "dp/distributed/_fsdp.py": Claim("Norms are of the whole model, and shards that are spread in another way are refused.", (_TRAINING + "norms_over_a_part_of_the_model_are_noticed", _FAILURES + "other_ways_of_spreading_parameters_are_refused")),
    "dp/_mechanism/consensus.py": Claim("Ranks that do not agree release nothing; in one process there is nothing to compare.", ("dp/distributed/test_failures.py::test_ranks_agree_anew_after_something_was_replaced",)),
}  # fmt: skip

_BY_POWERS = (
    "Whose each row is, by rules. A wrong owner gives one unit gradients of another, and"
    " losses multiplied by powers of two show it: at the first three passes, and at one"
    " in 128 after that. What a closed gate hides is not seen until the gate opens."
)
_BY_TORCH = (
    "Sums for random weights are compared with torch's own backward pass, and the norm of"
    " a random unit with that of its gradient: at the first three passes, and at one in"
    " 128 after that."
)
_AGREES = (
    "Before a certificate is written, `dp_accounting` composes the same releases by"
    " itself, and nothing is certified if the two differ. (`spent()` is not compared.)"
)
_BY_BITS = (
    "Some 2000 elements of a call are recomputed from their random bits, at the first three"
    " calls and at one in 128 after that. What 24 bits leave open, in one element of 2000,"
    " is compared with the two results that they allow."
)
_NOISE_NOTICED = (_NOISE_VERIFIED + "a_defect_of_the_noise_is_noticed",)
_NOTICED = (_VERIFIED + "a_defect_that_lets_units_mix_is_noticed",)
_NOT_TORCHS = (_VERIFIED + "a_gradient_that_is_not_torchs_own_is_noticed",)

# An entry that ends in a slash is about every file below it.
NOT_BELIEVED: dict[str, Checked] = {
    "dp/ledger/_budget.py": Checked("It decides when to stop. What was spent is computed from the charges, by the ledger and by `dp.verify`.", (_LEDGER + "what_is_spent_is_what_the_releases_cost", _CERTIFICATE + "a_run_beyond_its_plan_is_found")),
    "dp/per_sample/_isolation/following.py": Checked(_BY_POWERS, _NOTICED),
    "dp/per_sample/_isolation/rule_table.py": Checked(_BY_POWERS, _NOTICED),
    "dp/per_sample/_isolation/static_rules.py": Checked(_BY_POWERS, (*_NOTICED, _OWNERS + "no_rule_gives_an_element_to_a_wrong_unit")),
    "dp/per_sample/_isolation/placement_rules.py": Checked(_BY_POWERS, (*_NOTICED, _OWNERS + "no_rule_gives_an_element_to_a_wrong_unit")),
    "dp/per_sample/_isolation/routing_rules.py": Checked(_BY_POWERS, (*_NOTICED, _OWNERS + "no_rule_gives_an_element_to_a_wrong_unit")),
    "dp/per_sample/_isolation/attention_rules.py": Checked(_BY_POWERS, (*_NOTICED, "dp/per_sample/test_packed_attention.py::test_random_masks_are_exact_or_refused")),
    "dp/per_sample/_isolation/integer_rules.py": Checked(_BY_POWERS, (*_NOTICED, _OWNERS + "integers_say_the_same_as_rows")),
    "dp/per_sample/_isolation/batch_layout.py": Checked(_BY_POWERS, _NOTICED),
    "dp/evidence/": Checked("It puts aside and evaluates again, and can only warn or end a run: no epsilon depends on it. That one loss depends on one example is an assumption that the certificate states with it and without it, and what it says of looks `dp.verify` compares with the ids of the processes.", (_EVIDENCE + "looks_change_nothing_of_a_run", "dp/evidence/test_evidence_of_runs.py::test_altered_evidence_is_found")),
    "dp/certificate/_evidence.py": Checked("It words and checks what `dp.verify` reads.", ("dp/evidence/test_evidence_of_runs.py::test_altered_evidence_is_found",)),
    "dp/per_sample/_isolation/owner_moves.py": Checked(_BY_POWERS, (*_NOTICED, "dp/per_sample/test_owner_values.py::test_two_consumers_join_element_by_element")),
    "dp/per_sample/_isolation/own_backward.py": Checked(_BY_POWERS, _NOTICED),
    "dp/per_sample/_isolation/analysis.py": Checked(_BY_POWERS, _NOTICED),
    "dp/per_sample/_isolation/known_graph.py": Checked("A graph that is taken for a known one is walked again where it is verified, and what was read of it is compared with what the walk finds.", (_REFERENCE + "a_graph_that_is_taken_for_another_is_noticed", _GRAPHS + "what_looks_alike_is_not")),
    "dp/per_sample/_graph/views.py": Checked(_BY_TORCH, (*_NOT_TORCHS, _GRADIENTS + "gradients_are_those_of_the_loop")),
    "dp/per_sample/_backward_pass.py": Checked(_BY_TORCH, _NOT_TORCHS),
    "dp/per_sample/_graph/kept_memory.py": Checked("It counts bytes, which decide in what form gradients are held.", (_GRADIENTS + "without_room_gradients_are_computed_twice",)),
    "dp/per_sample/_taken_over.py": Checked(_BY_TORCH, (*_NOT_TORCHS, "dp/per_sample/test_operations.py::test_fused_lstm_in_the_middle_of_a_model")),
    "dp/per_sample/_gradients.py": Checked(_BY_TORCH + " That what is not finite stays out of sums, powers of two show.", (*_NOT_TORCHS, _REFERENCE + "what_is_not_finite_stays_out_of_sums")),
    "dp/per_sample/_layer_batching.py": Checked(_BY_TORCH, (_VERIFIED + "sums_of_another_layer_are_noticed",)),
    "dp/per_sample/_row_layers.py": Checked(_BY_TORCH, (_ROW_LAYERS + "wrong_sums_are_noticed", _ROW_LAYERS + "norms_that_are_too_small_are_noticed")),
    "dp/per_sample/_repeated_layers.py": Checked(_BY_TORCH, (_REPEATED + "wrong_steps_are_noticed",)),
    "dp/per_sample/_shortcuts.py": Checked(_BY_TORCH, (_ROW_LAYERS + "wrong_sums_are_noticed", _VERIFIED + "sums_of_another_layer_are_noticed")),
    "dp/per_sample/_parts/": Checked(_BY_TORCH, (*_NOT_TORCHS, _REFERENCE + "norms_that_are_too_small_are_noticed_in_every_group")),
    "dp/per_sample/_rules/": Checked(_BY_TORCH, (*_NOT_TORCHS, *_EXACT)),
    "dp/calibration/": Checked("What it finds becomes a plan, and the ledger computes what that plan costs anew.", (_LEDGER + "whatever_is_asked_for_the_target_is_kept",)),
    "dp/comparison.py": Checked("It chooses how a plan draws; the ledger computes what that plan costs anew, and the loader must draw as the plan says.", (_ALLOCATION + "the_best_mechanism_is_the_one_with_the_least_error",)),
    "dp/plan/_plan_for.py": Checked("It finds the number that is left out; what the plan then costs is computed of all its numbers.", ("dp/test_plan.py::test_plan_for_keeps_the_target",)),
    "dp/noise/_host/add.py": Checked(_BY_BITS, _NOISE_NOTICED),
    "dp/noise/_host/rounded.py": Checked(_BY_BITS, (*_NOISE_NOTICED, _ROUNDING + "results_are_the_real_numbers_rounded")),
    "dp/noise/_host/float32_stage.py": Checked(_BY_BITS, (*_NOISE_NOTICED, _ROUNDING + "both_stages_agree")),
    "dp/noise/_host/compiled_stage.py": Checked(_BY_BITS + " It is also compared with numpy's operations before its first use.", (_NOISE_VERIFIED + "the_compiled_loop_verifies", _KERNEL + "a_kernel_that_errs_anywhere_is_not_used")),
    "dp/noise/_host/workspace.py": Checked(_BY_BITS, (*_NOISE_NOTICED, _NOISE + "memory_for_temporaries_has_one_user_at_a_time")),
    "dp/noise/_prefix_sums.py": Checked("It chooses coefficients, of which any keep epsilon where their norm is 1.", (_CORRELATED + "errors_of_prefix_sums_are_the_published_ones",)),
    "dp/sampling/_loader_of.py": Checked("Whatever loader it builds, the optimizer refuses one that does not draw as the plan says.", (_ALLOCATION + "a_loader_of_another_scheme_is_refused",)),
    "dp/accounting/_lower_bounds.py": Checked("It is itself a check, of epsilons of random allocation.", (_OF_PASSES + "a_law_that_is_too_narrow_is_not_certified",)),
    "dp/ledger/_state.py": Checked("What is written is read again before it leaves, and what is read is written again before it counts: a charge that differs is an error.", (_LEDGER + "a_state_that_would_lose_a_charge_is_not_written", _LEDGER + "a_state_of_which_a_charge_would_be_lost_is_not_read")),
    "dp/ledger/_writer.py": Checked("It names who charges: two names for one run count its charges twice, and a fork has a name of its own.", (_LEDGER + "another_process_id_is_another_segment",)),
    "dp/optimizer/_private_loss.py": Checked("The engine divides out whatever scale it is told, and clips what is left: a wrong scale can only cost accuracy.", ("dp/test_optimizer_scaler.py::test_one_example_can_neither_skip_a_step_nor_change_the_scale",)),
    "dp/sampling/_schemes.py": Checked("A loader draws with the numbers that are charged: it compares them with the plan's, and the witness of releases with the charge.", (_WITNESS + "a_loader_of_another_rate_is_noticed", "dp/test_truncated.py::test_numbers_out_of_range_are_refused", "dp/test_plan.py::test_the_loader_samples_as_planned")),
    "dp/schedule.py": Checked("A wrong value would be used and charged alike: both are read in `_mechanism/current_values.py`.", ("dp/test_schedule.py::test_noise_and_charges_follow_the_plans_schedules",)),
    "dp/_tuning.py": Checked("Sizes that decide speed and memory; margins stand where they are argued for.", (_GRADIENTS + "without_room_gradients_are_computed_twice",)),
    "dp/query/_answers.py": Checked("It holds what was released, and reads quantiles off it.", ("dp/test_queries.py::test_quantiles_are_read_off_a_histogram",)),
    "dp/optimizer/_bias_correction.py": Checked("It is given what was released and public numbers, after the step.", ("dp/test_bias_correction.py::test_updates_are_those_of_the_algorithm",)),
    "dp/exceptions.py": Checked("Names of errors.", ()),
    "dp/_typing.py": Checked("Names of types.", ()),
    "dp/sampling/_empty_batch.py": Checked("The ticket of an empty batch counts no example, so a loss for one raises.", (_OPTIMIZER + "backward_twice_on_the_same_examples_is_refused",)),
    "dp/sampling/_fetch.py": Checked("It reads the rows whose numbers were drawn. Tests compare it with torch's own loader, and `dp.audit.conformance` sees a row that counts twice.", (_SAMPLING + "tensors_are_read_as_torchs_loader_reads_them", "dp/test_audit.py::test_a_broken_build_does_not_conform")),
    "dp/_mechanism/likely_causes.py": Checked("Words and a warning; a step that it lets through by mistake is noise alone.", (_BESIDE + "losses_that_no_weight_reaches_have_no_leaves",)),
    "dp/_mechanism/beside.py": Checked("It sees what gets no noise, and can only warn.", (_BESIDE + "rows_that_a_forward_pass_writes_are_told",)),
    "dp/_mechanism/stand_in.py": Checked("It holds zeros, or infinity, and can only warn.", ("dp/test_optimizer.py::test_gradients_never_show_before_the_noise_is_in", "dp/test_stand_in.py::test_one_tensor_serves_all_batches")),
    "dp/evidence/_callers.py": Checked("Where a warning points.", ("dp/test_stand_in.py::test_what_clips_scales_or_measures_is_told_once",)),
    "dp/_mechanism/changed_options.py": Checked("It can only warn, and add what a certificate assumes.", ("dp/test_changed_options.py::test_every_option_that_changed_is_named_in_the_certificate",)),
    "dp/optimizer/_layers_around.py": Checked("It can only let a warning out, of what is written while a step ends.", (_BESIDE + "what_a_layer_writes_in_its_own_step_is_an_update",)),
    "dp/optimizer/_left_out.py": Checked("It can only warn, and add what a certificate assumes.", ("dp/test_left_out.py::test_a_batch_that_is_left_out_is_told_and_named",)),
    "dp/optimizer/_beside.py": Checked("It can only warn, and add what a certificate assumes.", (_BESIDE + "weights_that_another_optimizer_may_train_are_told",)),
    "dp/sampling/_unamplified_loader.py": Checked("It counts indices that repeat; without it they would not be counted.", (_ROWS + "sampling_with_replacement_is_refused",)),
    "dp/sampling/_yielded.py": Checked("It is itself a check, and can only refuse a step.", (_ROWS + "another_batch_of_the_same_size_is_refused", _ROWS + "a_freed_storage_is_not_taken_for_another_at_its_address")),
    "dp/sampling/_rows_read.py": Checked("It is itself a check, and can only refuse a step.", (_ROWS + "a_micro_batch_twice_and_another_never_is_refused",)),
    "dp/sampling/_distinct_rows.py": Checked("It is itself a check, and can only refuse a dataset.", (_ROWS + "an_example_in_two_rows_is_refused",)),
    "dp/sampling/_own_rows.py": Checked("It is itself a check, and can only refuse a dataset.", ("dp/test_own_rows.py::test_a_dataset_that_makes_rows_of_several_examples_is_refused",)),
    "dp/sampling/_shared_rows.py": Checked("It is itself a check, and can only refuse a dataset.", ("dp/test_shared_rows.py::test_rows_that_have_data_in_common_are_refused",)),
    "dp/sampling/_common_parts.py": Checked("It says what rows have in common, for checks that can only refuse or warn.", ("dp/test_shared_rows.py::test_rows_that_have_data_in_common_are_refused",)),
    "dp/sampling/_copied_rows.py": Checked("It can only warn.", ("dp/test_copied_rows.py::test_rows_that_look_like_copies_are_told_of",)),
    "dp/sampling/_rows_in_place.py": Checked("It is itself a check: it can refuse a dataset, and let ranks compare theirs anew.", ("dp/test_rows_in_place.py::test_rows_that_moved_to_numbers_of_other_units_are_refused",)),
    "dp/sampling/_kept_rows.py": Checked("It tells where rows lie, for a check that can only refuse: what it misses is as data that another process reads.", (_PAID + "rows_that_two_datasets_share_are_recognised",)),
    "dp/sampling/_holds_data.py": Checked("It tells what checks look at, which can only refuse.", ("dp/test_own_rows.py::test_a_dataset_that_makes_rows_of_several_examples_is_refused",)),
    "dp/sampling/_collation.py": Checked("It is itself a check, and can only refuse a function.", (_ROWS + "a_collate_fn_that_mixes_is_refused",)),
    "dp/sampling/_refused_arguments.py": Checked("It explains; batches come from the loader's own sampler with or without it.", (_SAMPLING + "arguments_that_choose_the_batches_are_refused",)),
    "dp/accounting/_sampled_losses.py": Checked(_AGREES, (_CERTIFICATE + "losses_that_err_are_not_certified",)),
    "dp/ledger/_advisories.py": Checked("A table of faults; no number depends on it.", (_CLAIMS + "advisories_are_named_by_their_places",)),
    "dp/accounting/_quiet.py": Checked("It silences a logger; no number depends on it.", (_CLAIMS + "the_cost_at_an_order_is_the_studys",)),
    "dp/accounting/_buckets.py": Checked(_AGREES, (_CERTIFICATE + "losses_that_err_are_not_certified",)),
    "dp/accounting/_widths.py": Checked("It chooses the width of buckets, and every width gives an upper bound.", ("dp/test_accounting.py::test_a_larger_tolerance_is_a_larger_bound",)),
    "dp/accounting/_resolution.py": Checked("It chooses the width of buckets, and every width gives an upper bound.", ("dp/test_accounting.py::test_a_larger_tolerance_is_a_larger_bound",)),
    "dp/accounting/_reference.py": Checked("It is itself a check: only `dp.verify` asks it, of numbers that were stated already.", (_CERTIFICATE + "verifying_rests_on_dp_accounting_alone",)),
    "dp/certificate/_verification.py": Checked("It is itself a check.", (_CERTIFICATE + "every_altered_number_is_found",)),
    "dp/certificate/_run_findings.py": Checked("It is itself a check.", (_CERTIFICATE + "every_altered_number_is_found",)),
    "dp/certificate/_comparison.py": Checked("It is itself a check.", (_CERTIFICATE + "every_altered_number_is_found",)),
    "dp/certificate/_tuning_findings.py": Checked("It is itself a check.", (_TUNE + "the_certificate_states_its_conditions_and_verifies",)),
    "dp/certificate/_soundness.py": Checked("It is itself a check.", (_CERTIFICATE + "what_is_left_out_or_cannot_be_is_found",)),
    "dp/certificate/_sentences.py": Checked("Words; `dp.verify` demands every standard sentence.", (_CERTIFICATE + "altered_words_are_found",)),
    "dp/certificate/_statement.py": Checked("Fields of the statement, whose numbers `dp.verify` computes again.", (_CERTIFICATE + "every_altered_number_is_found",)),
    "dp/_containers.py": Checked("It walks batches; how many rows each part has is counted against the ticket.", (_OPTIMIZER + "a_step_on_part_of_the_batch_is_refused",)),
    "dp/_reports.py": Checked("Values in words, and the form of reports; no step reads one.", ("dp/test_described.py::test_a_plan_says_its_numbers",)),
    "dp/certificate/_json.py": Checked("`dp.verify` reads what it wrote, and computes it again.", (_CERTIFICATE + "every_altered_number_is_found",)),
    "dp/certificate/_text.py": Checked("Another form of the numbers; the JSON is what is verified.", (_CERTIFICATE + "text_has_the_words_that_a_reader_needs",)),
    "dp/certificate/_picture.py": Checked("Another form of the numbers; the JSON is what is verified.", (_CERTIFICATE + "it_is_written_as_json_text_and_picture",)),
    "dp/certificate/_page.py": Checked("Another form of the numbers; the JSON is what is verified.", ("dp/test_report_page.py::test_the_page_states_what_the_certificate_states",)),
    "dp/certificate/_chart.py": Checked("Places of lines and bars on the page; no number depends on them.", ("dp/test_report_page.py::test_points_are_drawn_where_their_values_are",)),
    "dp/certificate/_scores.py": Checked("Scores that are shown beside a certificate and are no part of it.", ("dp/test_report_page.py::test_scores_are_shown_beside_the_certificate",)),
    "dp/certificate/_software.py": Checked("It names versions; no number depends on it.", (_CERTIFICATE + "altered_words_are_found",)),
    "dp/noise/_host/kernels/": Checked("The loop is compared with numpy's operations before its first use.", (_KERNEL + "a_kernel_that_errs_anywhere_is_not_used",)),
    "dp/noise/_device/kernels/": Checked("Each is compared with OpenSSL or torch on the device before its first use.", (_CHACHA + "a_kernel_that_writes_anything_else_is_not_used", _CHACHA + "decision_kernels_that_err_anywhere_are_not_used")),
    "forwarding/": Checked("It decides where a name is read and written. A parameter that it lost would get no gradient and not move; noise, norm and charge of a step do not pass through it.", ("forwarding/test_laws.py::test_every_kind_of_wrapper_keeps_the_laws_that_the_page_says",)),
}  # fmt: skip
