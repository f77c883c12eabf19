"""Random allocation: what is drawn, what it is charged, and that both are stated."""

import copy
import json
import math
import pickle
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import TensorDataset

import dp
from dp import (
    AllocationLoader,
    DPOptimizer,
    PoissonSampling,
    PrivacyPlan,
    RandomAllocation,
    Schedule,
)
from dp._keystream import replayed_keys
from dp.accounting import Release
from dp.exceptions import (
    BudgetExhaustedError,
    LedgerError,
    PrivacyError,
    SamplingMismatchError,
)
from dp.ledger import Ledger
from dp.sampling import PassStep
from dp.sampling._draws import allocate_at_random


ALLOCATION = RandomAllocation(steps_per_pass=4)


@pytest.fixture
def make_allocated(make_run):
    """Build a run of 5 passes of 4 steps."""

    def make(**changes):
        return make_run(**{"sampling": ALLOCATION, **changes})

    return make


def passes_of(loader):
    """Return the rows of every batch of one iteration, pass by pass."""
    steps = loader.sampling.steps_per_pass
    rows = [list(loader.ticket.draw.rows) for _ in loader]
    return [rows[i : i + steps] for i in range(0, len(rows), steps)]


# What is drawn


def test_every_example_is_in_one_batch_of_each_pass():
    """Whatever the sizes of batches are."""
    loader = AllocationLoader(range(50), steps_per_pass=7, passes=3)

    for one_pass in passes_of(loader):
        assert sorted(row for rows in one_pass for row in rows) == list(range(50))
    assert len(loader) == 21
    assert loader.sampling == RandomAllocation(steps_per_pass=7)
    assert loader.sampling_probability == 1 / 7


def test_batches_hold_what_their_tickets_count():
    """Also empty ones, of which there are many."""
    loader = AllocationLoader(range(3), steps_per_pass=9, passes=2)

    seen = [(loader.ticket, batch.tolist()) for batch in loader]

    for number, (ticket, batch) in enumerate(seen):
        assert batch == list(ticket.draw.rows)
        assert ticket.num_samples == len(batch)
        assert ticket.draw.in_pass.step == number % 9
        assert ticket.draw.in_pass.num_steps == 9
    numbers = [ticket.draw.in_pass.number for ticket, _ in seen]
    assert len(set(numbers[:9])) == len(set(numbers[9:])) == 1
    assert numbers[0] != numbers[9]


def test_workers_load_what_was_allocated():
    """Draws are made ahead, and keep their places."""
    loader = AllocationLoader(range(30), steps_per_pass=5, passes=2, num_workers=1)

    got = [(loader.ticket.draw, batch.tolist()) for batch in loader]

    assert [batch for _, batch in got] == [list(draw.rows) for draw, _ in got]
    assert [draw.in_pass.step for draw, _ in got] == [0, 1, 2, 3, 4] * 2
    assert Counter(i for _, batch in got for i in batch) == dict.fromkeys(range(30), 2)


@pytest.mark.statistical
def test_steps_are_uniform_and_independent_over_passes_and_examples(decisions):
    """By exact tests of 200 passes of 60 examples.

    False alarms: 3e-9. A step that is taken 1.2 times as often is missed with
    probability 1e-6.
    """
    num_steps, count = 5, 60
    step_PN = np.empty((200, count), dtype=int)
    for row in step_PN:
        for step, indices in enumerate(allocate_at_random(count, num_steps=num_steps)):
            row[indices.astype(int)] = step

    sizes = np.bincount(step_PN.ravel(), minlength=num_steps)
    assert not decisions.refutes("uniform", stats.chisquare(sizes).pvalue)
    for name, left, right in (
        ("passes", step_PN[1:], step_PN[:-1]),
        ("examples", step_PN[:, 1:], step_PN[:, :-1]),
    ):
        together = stats.binomtest(int((left == right).sum()), left.size, 1 / num_steps)
        assert not decisions.refutes(name, together.pvalue)


def test_another_example_moves_nobody_else():
    """Under the same keys, each one's step is its own."""
    with replayed_keys():
        before = allocate_at_random(100, num_steps=8)
    with replayed_keys():
        after = allocate_at_random(101, num_steps=8)

    assert [step[step < 100].tolist() for step in after] == [s.tolist() for s in before]


def test_no_seed_has_an_effect():
    """Coins are the operating system's."""
    steps = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 -- as scripts do
        steps.append(passes_of(AllocationLoader(range(50), steps_per_pass=9)))

    assert steps[0] != steps[1]


def test_a_pass_is_allocated_anew_every_time():
    """One allocation that is used in every pass costs much more."""
    loader = AllocationLoader(range(50), steps_per_pass=9, passes=2)

    first, second = passes_of(loader)
    third, _ = passes_of(loader)

    assert first != second
    assert first != third


def test_units_are_allocated_with_all_their_rows():
    """Each unit is in one batch of a pass, and is one for its ticket."""
    units = [0, 1, 2, 0, 1, 0, 3]
    loader = AllocationLoader(range(7), steps_per_pass=3, units=units)

    batches = [(batch.tolist(), loader.ticket) for batch in loader]

    assert sorted(row for batch, _ in batches for row in batch) == list(range(7))
    for batch, ticket in batches:
        whole = {units[row] for row in batch}
        assert sorted(batch) == [r for r in range(7) if units[r] in whole]
        assert ticket.num_samples == len(whole)
    few = AllocationLoader(range(7), steps_per_pass=3, units=units, max_per_unit=1)
    assert sum(len(batch) for batch in few) == 4


def test_ranks_share_a_pass(monkeypatch):
    """Each allocates every n-th example; together they have each one once."""
    rows = []
    for rank in range(3):
        monkeypatch.setattr(
            "dp.sampling._loader.rank_and_size", lambda rank=rank: (rank, 3)
        )
        loader = AllocationLoader(range(20), steps_per_pass=4)
        rows.extend(batch.tolist() for batch in loader)

    assert sorted(i for part in rows for i in part) == list(range(20))


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ({"max_batch_size": 3}, "batches are truncated"),
        ({"sampling_probability": 0.1}, "by its own coin"),
        ({"steps": 5}, "passes how many"),
        ({"shuffle": True}, "by its own coin"),
        ({"batch_size": 5}, "by its own coin"),
        ({"drop_last": True}, "by its own coin"),
        ({"generator": None}, "cannot be seeded"),
        ({"passes": 0}, "passes must be a whole number"),
        ({"steps_per_pass": 0}, "steps_per_pass must be a whole number"),
    ],
)
def test_arguments_that_contradict_the_scheme_are_refused(argument, told):
    """By name, and with the reason."""
    with pytest.raises((TypeError, ValueError), match=told):
        AllocationLoader(range(5), **{"steps_per_pass": 2, **argument})


# The plan


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"neighboring_relation": "replace_one"}, "no bound is proven for an example"),
        ({"steps": 18}, "a multiple of steps_per_pass=4.*got 18; plan for 20"),
        ({"noise_multiplier": Schedule([(4, 2.0), (4, 1.0)])}, "noise_multiplier must"),
        ({"max_grad_norm": Schedule([(4, 2.0), (4, 1.0)])}, "max_grad_norm must be a"),
        ({"renyi_order": 8.0}, "renyi_order must be None with random allocation"),
        ({"group_size": 2}, "group_size must be 1 with random allocation"),
    ],
)
def test_a_plan_without_a_bound_is_refused(make_plan, change, told):
    """Before anything is drawn."""
    with pytest.raises(ValueError, match=told):
        make_plan(sampling=ALLOCATION, **change)


def test_a_plan_releases_whole_passes(make_plan):
    """It is written and read, and its loader draws as it says."""
    plan = make_plan(sampling=ALLOCATION)
    release = Release(
        sampling_probability=0.25, noise_multiplier=1.0, count=20, steps_per_pass=4
    )

    assert plan.releases(20) == (release,)
    assert plan.sampling_probability == 0.25
    assert plan.steps_per_pass == 4
    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    loader = plan.loader(range(9))
    assert isinstance(loader, AllocationLoader)
    assert len(loader) == 20
    assert make_plan().steps_per_pass is None


ABOUT = {
    "target_epsilon": 3.0,
    "target_delta": 1e-5,
    "max_grad_norm": 1.0,
    "expected_batch_size": 10,
}


@pytest.mark.slow
def test_the_best_mechanism_is_the_one_with_the_least_error():
    """All numbers are told, in the plan and so in its certificates."""
    plan = dp.plan_for(**ABOUT, sampling_probability=0.1, steps=20, mechanism="best")
    without = dp.plan_for(
        **ABOUT, sampling_probability=0.1, steps=20, mechanism="best", bands=1
    )
    poisson = dp.plan_for(**ABOUT, sampling_probability=0.1, steps=20)
    allocated = dp.plan_for(
        **ABOUT, sampling_probability=0.1, steps=20, mechanism="allocation"
    )

    assert plan.sampling == allocated.sampling == RandomAllocation(steps_per_pass=10)
    assert plan.noise_multiplier == allocated.noise_multiplier
    assert plan.noise_multiplier < poisson.noise_multiplier
    assert plan.guarantee().epsilon <= 3.0
    for sentence, name, sigma in zip(
        plan.compared[:2],
        ("Poisson sampling", "Random allocation"),
        (poisson.noise_multiplier, plan.noise_multiplier),
        strict=True,
    ):
        error = sigma * math.sqrt(21 / 2)
        assert sentence == (
            f"{name}, which needs noise_multiplier={sigma:g} and leaves an error of"
            f" {error:.4g} in prefix sums."
        )
    assert plan.compared[2].startswith("Correlated noise of 2 bands")
    assert without.compared == plan.compared[:2]
    assert PrivacyPlan.from_dict(plan.to_dict()) == plan
    assert "compared" not in poisson.to_dict()


def test_the_best_mechanism_may_be_poisson_sampling(monkeypatch):
    """Nothing is taken for granted: here allocation is made to look worse."""
    right = dp.calibration.calibrate_noise_multiplier

    def calibrated(**about):
        return right(**about) * (2 if about["steps_per_pass"] else 1)

    monkeypatch.setattr(
        "dp.calibration._mechanisms.calibrate_noise_multiplier", calibrated
    )

    plan = dp.plan_for(
        **ABOUT, sampling_probability=0.1, steps=20, mechanism="best", bands=1
    )

    assert plan.sampling == PoissonSampling(sampling_probability=0.1)
    assert len(plan.compared) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"neighboring_relation": "replace_one"}, "an example that is replaced"),
        ({"steps": 25}, "steps must be a multiple of steps_per_pass=10"),
        ({"sampling_probability": 0.15}, "one over a whole number of steps"),
        (
            {
                "max_batch_size": 30,
                "dataset_size": 100,
                "neighboring_relation": "zero_out",
            },
            "batches are truncated",
        ),
        ({"max_grad_norm": Schedule([(10, 1.0)])}, "max_grad_norm must be a number"),
        ({"renyi_order": "best"}, "renyi_order must be None"),
        ({"group_size": 2}, "no bound is proven for groups"),
    ],
)
def test_poisson_sampling_is_taken_where_allocation_has_no_bound(change, told):
    """``"best"`` says why; ``"allocation"`` refuses by name."""
    numbers = {**ABOUT, "sampling_probability": 0.1, "steps": 20, **change}

    plan = dp.plan_for(**numbers, mechanism="best")

    assert not isinstance(plan.sampling, RandomAllocation)
    assert any(
        sentence.startswith("Random allocation was not:") for sentence in plan.compared
    )
    with pytest.raises(ValueError, match=f"not possible: .*{told}"):
        dp.plan_for(**numbers, mechanism="allocation")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"mechanism": "banded"},
            "mechanism must be one of 'poisson'.*, got 'banded'$",
        ),
        ({"mechanism": "poison"}, "got 'poison'; did you mean 'poisson'"),
        ({"mechanism": "best", "steps": None, "noise_multiplier": 1.0}, "give these"),
        ({"mechanism": "best", "noise_multiplier": 1.0}, "no noise_multiplier; got"),
        ({"mechanism": "best", "sampling_probability": "largest"}, "give these two"),
        (
            {"mechanism": "allocation", "sampling_probability": None},
            "needs a sampling_probability, got None",
        ),
    ],
)
def test_a_mechanism_that_cannot_be_planned_is_refused(change, told):
    """With what was given."""
    with pytest.raises(ValueError, match=told):
        dp.plan_for(**{**ABOUT, "sampling_probability": 0.1, "steps": 20, **change})


@pytest.mark.slow
def test_steps_are_planned_in_whole_passes():
    """For noise that is given."""
    plan = dp.plan_for(
        **ABOUT,
        sampling_probability=0.1,
        noise_multiplier=2.0,
        mechanism="allocation",
    )

    assert plan.steps % 10 == 0
    assert plan.guarantee().epsilon <= 3.0


# Charges


def test_a_pass_is_charged_whole_before_its_first_release(make_allocated):
    """Its other steps are paid for by then."""
    run = make_allocated()
    charged, exhausted = [], []
    for batch in run.loader:
        run.optimizer.backward(run.losses(batch))
        run.optimizer.step()
        charged.append(run.optimizer.ledger.steps)
        exhausted.append(run.optimizer.ledger.is_exhausted)

    assert exhausted == [False] * 19 + [True]
    assert charged == [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4 + [20] * 4
    (charge,) = run.optimizer.ledger.charges()
    assert (charge.count, charge.steps_per_pass) == (20, 4)
    assert run.optimizer.spent() == run.optimizer.plan.guarantee()
    with pytest.raises(BudgetExhaustedError):
        run.train(1)


def test_the_noise_of_every_step_is_the_planned_one(make_allocated):
    """On an empty batch as well: a step is never left out."""
    run = make_allocated(num_examples=1, num_features=1000, lr=1.0)
    before = run.model.weight.detach().clone()
    run.train(20)

    moved = (run.model.weight.detach() - before).flatten() * 10
    assert float(moved.std()) == pytest.approx(math.sqrt(20), rel=0.2)


def test_an_interrupted_pass_stays_charged_and_another_one_begins(make_allocated):
    """Iterating anew is a new pass, of which the ledger knows nothing yet."""
    run = make_allocated()
    run.train(2)
    assert run.optimizer.ledger.steps == 4

    run.train(1)

    assert run.optimizer.ledger.steps == 8


def test_a_resume_begins_a_new_pass(make_allocated, check_resumed_steps):
    """What is saved within a pass has all of it charged, and nothing to go on with."""
    check_resumed_steps(make_allocated(), make_allocated())


def test_a_copy_pays_for_the_rest_of_the_pass_itself(make_allocated):
    """Its ledger is a fork, and both add up."""
    run = make_allocated()
    batches = iter(run.loader)
    run.optimizer.backward(run.losses(next(batches)))
    run.optimizer.step()
    for fork in (
        copy.deepcopy(run.optimizer.ledger),
        pickle.loads(pickle.dumps(run.optimizer.ledger)),  # noqa: S301 -- our own
    ):
        place = run.loader.ticket.draw.in_pass
        fork.reserve(
            sampling_probability=0.25,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            in_pass=PassStep(number=place.number, step=1, num_steps=4),
        )
        assert fork.steps == 8


@pytest.mark.filterwarnings("ignore:a batch was drawn and left out")
def test_a_batch_that_is_dropped_leaves_the_pass_paid(make_allocated):
    """Releasing less is post-processing."""
    run = make_allocated()
    for number, batch in enumerate(run.loader):
        if number % 2:
            run.optimizer.backward(run.losses(batch))
            run.optimizer.step()

    assert run.optimizer.ledger.steps == 20


def reserve(ledger, place, **changes):
    numbers = {
        "sampling_probability": 0.25,
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
    }
    ledger.reserve(**{**numbers, **changes}, in_pass=place)


def place(step, number=10**9, num_steps=4):
    return PassStep(number=number, step=step, num_steps=num_steps)


def test_a_step_of_a_pass_is_released_once(make_plan):
    """Nor is one that came before it, whoever asks."""
    ledger = Ledger(make_plan(sampling=ALLOCATION))
    reserve(ledger, place(1))
    for step in (1, 0):
        with pytest.raises(SamplingMismatchError, match="comes after its step 1"):
            reserve(ledger, place(step))

    reserve(ledger, place(2))
    assert ledger.steps == 4
    reserve(ledger, place(2, number=10**9 + 1))
    assert ledger.steps == 8


@pytest.mark.parametrize("other", [None, place(0, num_steps=5)])
def test_a_release_of_no_pass_or_of_another_scheme_is_refused(make_plan, other):
    """Nothing is charged."""
    ledger = Ledger(make_plan(sampling=ALLOCATION))
    with pytest.raises(SamplingMismatchError, match=r"the plan draws by RandomAlloc"):
        reserve(ledger, other)
    assert ledger.steps == 0
    poisson = Ledger(make_plan())
    with pytest.raises(SamplingMismatchError, match="of a pass of 4 steps"):
        reserve(poisson, place(0))


def test_a_forked_process_has_paid_for_nothing(make_plan, monkeypatch):
    """Numbers of passes go on from where they were, on both sides of a fork."""
    ledger = Ledger(make_plan(sampling=ALLOCATION))
    reserve(ledger, place(0))
    monkeypatch.setattr("dp.ledger._paid_pass.os.getpid", lambda: -1)

    reserve(ledger, place(1))

    assert ledger.steps == 8


def test_noise_below_the_plan_is_refused_and_more_of_it_is_not(make_allocated):
    """No bound is proven for it, at any step of a pass; more costs no more."""
    run = make_allocated()
    run.train(1)
    told = r"noise_multiplier=0\.99 is below the plan's 1\.0: no bound is proven"
    with pytest.raises(PrivacyError, match=told):
        run.optimizer.noise_multiplier = 0.99
    run.optimizer.assign_public(noise_multiplier=0.99, reason="planned")
    with pytest.raises(PrivacyError, match=told):
        run.train(1)
    assert run.optimizer.ledger.steps == 4

    run.optimizer.zero_grad()
    run.optimizer.noise_multiplier = 3.0
    run.train(5)

    assert run.optimizer.ledger.steps == 12
    assert {c.noise_multiplier for c in run.optimizer.ledger.charges()} == {1.0}


@pytest.mark.filterwarnings("ignore:a batch was drawn and left out")
def test_the_norm_is_one_in_a_pass(make_allocated):
    """Its one charge states it. Another pass may have another one."""
    run = make_allocated()
    batches = iter(run.loader)
    for number in range(5):
        batch = next(batches)
        if number == 2:
            run.optimizer.max_grad_norm = 0.5
            run.optimizer.backward(run.losses(batch))
            with pytest.raises(
                PrivacyError, match=r"changed from 1\.0 to 0\.5 within a"
            ):
                run.optimizer.step()
            run.optimizer.zero_grad()
            run.optimizer.max_grad_norm = 1.0
            continue
        if number == 4:
            run.optimizer.max_grad_norm = 0.5
        run.optimizer.backward(run.losses(batch))
        run.optimizer.step()

    assert [c.max_grad_norm for c in run.optimizer.ledger.charges()] == [1.0, 0.5]
    assert run.optimizer.ledger.steps == 8


def test_a_target_stops_a_run_between_passes(make_allocated, make_plan):
    """The pass that it does not allow is not begun."""
    two = make_plan(sampling=ALLOCATION, steps=8).guarantee().epsilon
    run = make_allocated(target_epsilon=two * 1.0001)

    with pytest.raises(BudgetExhaustedError):
        run.train(20)

    assert run.optimizer.ledger.steps == 8
    assert run.optimizer.spent().epsilon <= two * 1.0001


@pytest.mark.slow
def test_a_run_goes_on_after_poisson_steps(make_run, make_allocated):
    """Charges of both kinds add up."""
    before, run = make_run(), make_allocated(target_epsilon=100.0)
    before.train(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.optimizer.load_state_dict(before.optimizer.state_dict())

    run.train(4)

    assert run.optimizer.ledger.steps == 8
    assert run.optimizer.spent().epsilon > before.optimizer.spent().epsilon
    kinds = [release.steps_per_pass for release in run.optimizer.ledger.releases()]
    assert kinds == [4, None]


def test_a_renyi_filter_knows_no_passes(make_plan):
    """A plan with one refuses a state that was charged for them."""
    passes = Ledger(make_plan(sampling=ALLOCATION))
    reserve(passes, place(0))
    ledger = Ledger(make_plan(renyi_order=8.0))
    ledger.load_state_dict(passes.state_dict())

    with pytest.raises(ValueError, match="has no bound for passes by random alloc"):
        ledger.spent()


def test_a_debugging_seed_repeats_the_allocation():
    """As it repeats every draw; such runs are not private."""
    steps = []
    for seed in (1, 1, 2):
        loader = AllocationLoader(range(50), steps_per_pass=9)
        loader.use_debugging_seed(seed)
        steps.append(passes_of(loader))

    assert steps[0] == steps[1] != steps[2]


def test_a_state_keeps_charges_of_passes(make_allocated):
    """And a state in which a charge was altered is damaged."""
    run = make_allocated()
    run.train(3)
    state = run.optimizer.ledger.state_dict()
    ledger = Ledger(run.optimizer.plan)
    ledger.load_state_dict(json.loads(json.dumps(state)))

    assert ledger.charges() == run.optimizer.ledger.charges()
    for segment in state["segments"].values():
        segment[0]["steps_per_pass"] = 40
    with pytest.raises(LedgerError, match="must be 1 / 40"):
        Ledger(run.optimizer.plan).load_state_dict(state)


def test_a_loader_of_another_scheme_is_refused(make_plan):
    """Poisson batches are no passes, and passes of other lengths other ones."""
    plan = make_plan(sampling=ALLOCATION)
    data = TensorDataset(torch.randn(8, 3), torch.randn(8))
    sgd = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.1)
    for loader in (
        make_plan(sampling=PoissonSampling(sampling_probability=0.25)).loader(data),
        AllocationLoader(data, steps_per_pass=5),
    ):
        with pytest.raises(ValueError, match="the loader draws by"):
            DPOptimizer(sgd, plan=plan, loader=loader)


def test_a_batch_of_a_pass_is_good_for_one_step(make_allocated):
    """As every ticket is."""
    run = make_allocated()
    batch = next(iter(run.loader))
    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()
    with pytest.raises(SamplingMismatchError, match="already used for a step"):
        run.optimizer.backward(run.losses(batch))


# The certificate


@pytest.fixture
def certificate(make_allocated):
    run = make_allocated()
    run.train(6)
    return run.optimizer.certificate(private_data_touches=())


@pytest.mark.slow
def test_a_certificate_states_passes_and_verifies(certificate, tmp_path):
    """In words and numbers; it is read again as it was written."""
    text = certificate.to_text()

    assert "2 x a pass of 4 steps, sigma = 1, C = 1" in text
    assert "of groups of units      none is proven for random allocation" in text
    assert "none for random allocation" in text
    assert "Every example was in exactly one batch of each pass" in text
    assert "independent coin flips" not in text
    assert certificate.epsilon_of_groups == {}
    assert certificate.steps == 8
    certificate.write(tmp_path)
    verification = dp.verify(tmp_path / "certificate.json")
    assert verification.ok, verification.to_text()
    assert "dp_accounting has no losses of random allocation" in verification.computed
    assert "lower bound" in verification.to_text()
    assert dp.Certificate.from_json(certificate.to_json()) == certificate
    assert dp.verify(certificate, quick=True).ok


@pytest.mark.slow
def test_a_certificate_says_what_the_plan_compared():
    """Of a plan that took the best."""
    plan = dp.plan_for(**ABOUT, sampling_probability=0.25, steps=8, mechanism="best")
    data = TensorDataset(torch.randn(20, 3), torch.randn(20))
    model = torch.nn.Linear(3, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DPOptimizer(sgd, plan=plan, loader=plan.loader(data))

    text = optimizer.certificate().to_text()

    assert "the plan compared" in text
    for sentence in plan.compared:
        assert sentence in text


def altered(certificate, *path, value):
    body = json.loads(certificate.to_json())
    at = body
    for key in path[:-1]:
        at = at[key] if key != "segment" else next(iter(at["segments"].values()))
    at[path[-1]] = value
    return dp.Certificate.from_json(json.dumps(body))


@pytest.mark.parametrize(
    ("path", "value", "claim"),
    [
        (("epsilon",), 1.0, "lower bound"),
        (("epsilon",), 1.0, "epsilon"),
        (("epsilon_of_groups",), {"2": 3.0}, "epsilon of 2 units"),
        (("assumptions",), [], "assumptions"),
        (("runs", 0, "segment", 0, "count"), 6, "run 1: passes"),
        (("runs", 0, "segment", 0, "steps_per_pass"), None, "run 1: sampling"),
    ],
)
def test_what_was_altered_is_found(certificate, path, value, claim):
    """By the line that it is about."""
    verification = dp.verify(altered(certificate, *path, value=value))

    refuted = {f.claim for f in verification.findings if not f.holds}
    assert claim in refuted, verification.to_text()


@pytest.mark.slow
def test_runs_by_both_schemes_are_composed(certificate, make_run):
    """Groups have no bound then, and both assumptions are stated."""
    other = make_run()
    other.train(2)
    both = dp.compose(certificate, other.optimizer.certificate())

    assert both.epsilon > certificate.epsilon
    assert both.epsilon_of_groups == {}
    assert "independent coin flips" in both.to_text()
    assert "exactly one batch of each pass" in both.to_text()
    assert dp.verify(both).ok


def test_a_run_without_noise_is_not_private(make_allocated):
    """There is nothing to bound from below."""
    run = make_allocated(noise_multiplier=0.0)
    run.train(4)

    certificate = run.optimizer.certificate()

    assert certificate.epsilon == math.inf
    assert dp.verify(certificate).ok
