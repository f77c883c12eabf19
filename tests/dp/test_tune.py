"""The best of several private runs, and the certificate of the whole procedure."""

import json
import math
import stat
from unittest import mock

import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import TuningCertificate
from dp.accounting import ReferenceAccountant
from dp.exceptions import PrivacyError, UnsupportedOperationError
from dp.query import Queries
from dp.selection._draw import draw_candidates, draw_num_runs
from dp.selection._progress_file import ProgressFile


QUERY = dp.Query(name="score", noise_multiplier=3.0)
FEW = dp.NegativeBinomialRuns(mean=3.0)


class Trainer:
    """A training function of a candidate, a learning rate."""

    def __init__(self, plan, *, public=False, noise=None, after=None):
        self.plan, self.public, self.noise, self.after = plan, public, noise, after
        self.data = TensorDataset(torch.randn(20, 3), torch.randn(20))
        self.candidates = []

    def optimizer(self, rate, plan=None):
        plan = self.plan if plan is None else plan
        self.model = nn.Linear(3, 1)
        loader = plan.loader(self.data)
        sgd = torch.optim.SGD(self.model.parameters(), lr=rate)
        return dp.DPOptimizer(sgd, plan=plan, loader=loader, noise=self.noise), loader

    def steps(self, optimizer, loader, num=None):
        for index, (x, y) in enumerate(loader):
            if index == num:
                break
            optimizer.backward((self.model(x).squeeze(1) - y).square())
            optimizer.step()

    def __call__(self, rate):
        self.candidates.append(rate)
        optimizer, loader = self.optimizer(rate)
        self.steps(optimizer, loader)
        if self.after is not None:
            self.after(optimizer)
        if self.public:
            return rate, {"rate": rate}
        answer = Queries(optimizer).mean(
            "score", torch.ones(20), low=0, high=1, num_units=20
        )
        return answer.value, {"rate": rate}


@pytest.fixture
def plan(make_plan):
    return make_plan(queries=(QUERY,), steps=3)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tuning.secret"


def fixed(monkeypatch, *drawn):
    """Let the coins of the operating system fall so."""
    monkeypatch.setattr("dp.selection._tune.draw_candidates", lambda *_: [*drawn])


@pytest.mark.slow
def test_the_best_run_is_published_with_what_all_of_it_cost(plan, file, monkeypatch):
    """One certificate, of any number of runs; and nothing is left of the others."""
    fixed(monkeypatch, 0, 2, 1, 2)
    trainer = Trainer(plan, public=True)

    tuned = dp.tune(
        trainer,
        [0.1, 0.2, 0.3],
        plan=plan,
        file=file,
        runs=FEW,
        public_scores="made up",
    )

    assert trainer.candidates == [0.1, 0.3, 0.2, 0.3]
    assert tuned.best.candidate == 0.3
    assert tuned.best.score == 0.3
    assert tuned.best.result == {"rate": 0.3}
    assert list(file.parent.iterdir()) == []
    alone = plan.guarantee().epsilon
    assert tuned.certificate.epsilon_of_one_run == alone
    assert alone < tuned.certificate.epsilon < 3 * alone


class Warm(Trainer):
    """Makes its model once, or copies what the run before had left."""

    def __init__(self, plan, *, copies=False, resets=False):
        super().__init__(plan, public=True)
        self.copies, self.resets = copies, resets
        self.first = nn.Linear(3, 1)
        self.begins = {k: v.clone() for k, v in self.first.state_dict().items()}

    def optimizer(self, rate, plan=None):
        optimizer, loader = super().optimizer(rate, plan)
        if self.copies:
            self.model.load_state_dict(self.first.state_dict())
            self.first = self.model
            return optimizer, loader
        self.model = self.first
        if self.resets:
            self.model.load_state_dict(self.begins)
        sgd = torch.optim.SGD(self.model.parameters(), lr=rate)
        return dp.DPOptimizer(sgd, plan=self.plan, loader=loader), loader


@pytest.mark.parametrize("copies", [False, True])
def test_a_run_that_begins_where_another_ended_is_refused(
    plan, file, monkeypatch, copies
):
    """A model that is made outside of train, or a warm start: two runs cost as two."""
    fixed(monkeypatch, 0, 0)
    trainer = Warm(plan, copies=copies)

    with pytest.raises(PrivacyError, match="weights that an earlier run had left"):
        dp.tune(trainer, [0.1], plan=plan, file=file, runs=FEW, public_scores="no")


@pytest.mark.parametrize("rate", [0.1, 0.0])
def test_runs_may_begin_with_the_same_weights(plan, file, monkeypatch, rate):
    """Those from before the first run, also if runs left them as they were."""
    fixed(monkeypatch, 0, 0, 0)
    trainer = Warm(plan, resets=True)

    dp.tune(trainer, [rate], plan=plan, file=file, runs=FEW, public_scores="no")

    assert trainer.candidates == [rate] * 3


def test_scores_may_be_answers_of_the_plan(plan, file, monkeypatch):
    """Each run asks its own ledger, and on one dataset none is refused as a second."""
    fixed(monkeypatch, 0, 0, 1)

    tuned = dp.tune(Trainer(plan), [0.1, 0.2], plan=plan, file=file, runs=FEW)

    assert 0 <= tuned.best.score <= 1
    assert tuned.certificate.public_scores is None
    assert "answers of planned queries" in tuned.certificate.to_text()


@pytest.mark.slow
def test_no_run_at_all_is_an_outcome(plan, file, monkeypatch):
    """Of a Poisson number; what it cost is the same."""
    fixed(monkeypatch)

    tuned = dp.tune(
        Trainer(plan), [0.1], plan=plan, file=file, runs=dp.PoissonRuns(mean=1.0)
    )

    assert tuned.best is None
    assert tuned.certificate.epsilon > 0
    assert not file.exists()


def test_an_interruption_draws_no_other_number_of_runs(plan, file, monkeypatch):
    """The file keeps what was drawn and done; the run that was broken off is repeated."""
    fixed(monkeypatch, 2, 0, 1, 0)
    trainer = Trainer(plan, public=True)
    about = {"plan": plan, "file": file, "runs": FEW, "public_scores": "made up"}

    def crash(rate):
        if len(trainer.candidates) == 2:
            raise KeyboardInterrupt
        return trainer(rate)

    with pytest.raises(KeyboardInterrupt):
        dp.tune(crash, [0.1, 0.2, 0.3], **about)
    state = json.loads(file.read_text())
    assert state["note"].startswith("SECRET")
    assert state["drawn"] == [2, 0, 1, 0]
    assert state["scores"] == [0.3, 0.1]
    for path in file.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fixed(monkeypatch, 0)  # Would be drawn, were anything drawn again.

    tuned = dp.tune(trainer, [0.1, 0.2, 0.3], **about)

    assert trainer.candidates == [0.3, 0.1, 0.2, 0.1]
    assert tuned.best.candidate == 0.3
    assert tuned.best.result == {"rate": 0.3}


@pytest.mark.parametrize("ends", [False, True])
def test_of_two_processes_with_one_file_the_later_one_alone_publishes(
    plan, file, monkeypatch, ends
):
    """A job that was taken for dead: both together would publish two choices."""
    fixed(monkeypatch, 0, 1, 0)
    about = {"plan": plan, "file": file, "runs": FEW, "public_scores": "made up"}

    class Overtaken(Trainer):
        def __call__(self, rate):
            if len(self.candidates) == 1:  # While it runs, another one goes on.
                state = json.loads(file.read_text())
                other = ProgressFile.begun(file, about=state["about"], draw=list)
                if ends:
                    other.remove()
            return super().__call__(rate)

    trainer = Overtaken(plan, public=True)

    with pytest.raises(dp.LedgerError, match="another process goes on with"):
        dp.tune(trainer, [0.1, 0.2], **about)
    assert len(trainer.candidates) == 2
    if not ends:
        later = dp.tune(Trainer(plan, public=True), [0.1, 0.2], **about)
        assert later.best.score == 0.2


def test_after_an_interruption_no_run_begins_where_an_earlier_one_ended(
    plan, file, monkeypatch
):
    """The file remembers what runs left, as a model that each run saves and loads."""
    fixed(monkeypatch, 0, 0)
    about = {"plan": plan, "file": file, "runs": FEW, "public_scores": "no"}
    trainer = Warm(plan, copies=True)

    def crash(rate):
        if trainer.candidates:
            raise KeyboardInterrupt
        return trainer(rate)

    with pytest.raises(KeyboardInterrupt):
        dp.tune(crash, [0.1], **about)

    with pytest.raises(PrivacyError, match="weights that an earlier run had left"):
        dp.tune(trainer, [0.1], **about)


def test_only_the_best_result_is_kept(plan, file, monkeypatch):
    """Weights of the others are removed as soon as there is a better one."""
    fixed(monkeypatch, 0, 1, 2)
    trainer = Trainer(plan, public=True)

    def train(rate):
        kept = sorted(path.name for path in file.parent.glob("*.best"))
        assert (
            kept
            == [f"tuning.secret.{len(trainer.candidates) - 1}.best"][
                : len(trainer.candidates)
            ]
        )
        return trainer(rate)

    dp.tune(
        train, [0.1, 0.2, 0.3], plan=plan, file=file, runs=FEW, public_scores="made up"
    )


@pytest.mark.parametrize(
    "other", [{"candidates": [0.1, 0.4]}, {"runs": dp.NegativeBinomialRuns(mean=4.0)}]
)
def test_a_file_of_another_procedure_is_refused(plan, file, monkeypatch, other):
    """What its runs released would count for nothing."""
    fixed(monkeypatch, 0)
    about = {"candidates": [0.1, 0.2], "plan": plan, "file": file, "runs": FEW}

    def crash(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dp.tune(crash, **about)

    with pytest.raises(dp.LedgerError, match="is of another procedure"):
        dp.tune(Trainer(plan), **{**about, **other})


def test_a_damaged_file_is_refused(plan, file):
    """A new one would draw another number of runs."""
    file.write_text("{}")

    with pytest.raises(dp.LedgerError, match="holds no progress"):
        dp.tune(Trainer(plan), [0.1], plan=plan, file=file)


def test_a_score_that_is_no_number_is_the_worst(plan, file, monkeypatch):
    """As of a run that diverged."""
    fixed(monkeypatch, 0, 1)
    trainer = Trainer(plan, public=True)

    def train(rate):
        score, result = trainer(rate)
        return (math.nan if rate == 0.1 else score), result

    tuned = dp.tune(
        train, [0.1, 0.2], plan=plan, file=file, runs=FEW, public_scores="made up"
    )

    assert tuned.best.candidate == 0.2


@pytest.mark.parametrize("score", ["0.5", True, None])
def test_a_score_of_another_type_is_refused(plan, file, monkeypatch, score):
    """By its type; it may be a private number, which is not printed."""
    fixed(monkeypatch, 0)
    trainer = Trainer(plan, public=True)

    with pytest.raises(TypeError, match=f"got a {type(score).__name__};"):
        dp.tune(
            lambda rate: (score, trainer(rate)),
            [0.1],
            plan=plan,
            file=file,
            public_scores="made up",
        )


def tune_once(plan, file, monkeypatch, train, **options):
    fixed(monkeypatch, 0)
    return dp.tune(train, [0.1], plan=plan, file=file, **options)


def test_a_run_must_be_private(plan, file, monkeypatch):
    """Where no DPOptimizer stepped, nothing says what was released."""
    with pytest.raises(PrivacyError, match="no DPOptimizer took a step"):
        tune_once(plan, file, monkeypatch, lambda _: (0.5, None))


def test_a_run_must_follow_its_plan(plan, make_plan, file, monkeypatch):
    """Another plan costs something else."""
    other = Trainer(make_plan(queries=(QUERY,), steps=4))

    with pytest.raises(PrivacyError, match="by another plan"):
        tune_once(plan, file, monkeypatch, other)


def test_a_run_charges_one_ledger(plan, file, monkeypatch):
    """Two cost twice as much."""
    trainer = Trainer(plan)

    def train(rate):
        optimizer, loader = trainer.optimizer(rate)
        trainer.steps(optimizer, loader, 1)
        trainer.data = TensorDataset(torch.randn(20, 3), torch.randn(20))
        return trainer(rate)

    with pytest.raises(PrivacyError, match="2 ledgers were charged"):
        tune_once(plan, file, monkeypatch, train)


def test_a_score_needs_an_answer(plan, file, monkeypatch):
    """Or has to be public."""
    trainer = Trainer(plan, public=True)

    with pytest.raises(PrivacyError, match="asked no query of its plan"):
        tune_once(plan, file, monkeypatch, trainer)


def test_a_run_that_failed_is_refused(plan, file, monkeypatch):
    """No epsilon holds of it."""
    trainer = Trainer(plan, after=lambda optimizer: optimizer.ledger.fail("a test"))
    trainer.public = True

    with pytest.raises(PrivacyError, match="no guarantee holds for the run: a test"):
        tune_once(plan, file, monkeypatch, trainer, public_scores="made up")


def test_a_run_with_less_noise_than_planned_is_refused(plan, file, monkeypatch):
    """However public the reason is: the procedure counts the plan's."""
    trainer = Trainer(plan)

    def train(rate):
        optimizer, loader = trainer.optimizer(rate)
        optimizer.assign_public(noise_multiplier=0.8, reason="a test")
        trainer.steps(optimizer, loader, 1)
        return 0.5, None

    with pytest.raises(PrivacyError, match="other releases than the first steps"):
        tune_once(plan, file, monkeypatch, train, public_scores="made up")


def test_a_run_that_ends_early_or_has_more_noise_costs_no_more(plan, file, monkeypatch):
    """So it is accepted."""
    trainer = Trainer(plan)

    def train(rate):
        optimizer, loader = trainer.optimizer(rate)
        optimizer.noise_multiplier = 2.0
        trainer.steps(optimizer, loader, 2)
        return 0.5, "kept"

    tuned = tune_once(plan, file, monkeypatch, train, public_scores="made up")

    assert tuned.best.result == "kept"


def test_noise_without_a_bound_is_refused(plan, file, monkeypatch):
    """The certificate adds what noise of the operating system adds to delta."""
    trainer = Trainer(plan, public=True, noise=dp.GaussianNoise(rng="fast"))

    with pytest.raises(PrivacyError, match="rng='fast'"):
        tune_once(plan, file, monkeypatch, trainer, public_scores="made up")


def test_models_beyond_what_is_counted_are_refused(plan, file, monkeypatch):
    """Of ten thousand billion numbers."""
    monkeypatch.setattr("dp.selection._watched.MOST_NUMBERS", 10)
    trainer = Trainer(plan, public=True)

    with pytest.raises(PrivacyError, match="the run noises 4 numbers a step"):
        tune_once(plan, file, monkeypatch, trainer, public_scores="made up")


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"queries": ()}, {}, "a score needs noise of its own"),
        ({}, {"public_scores": " ."}, "public_scores must say"),
        ({}, {"candidates": []}, "at least one entry"),
        ({"neighboring_relation": "replace_one"}, {}, "'replace_one'"),
        ({"group_size": 2}, {}, "groups of 2"),
        ({"queries": (), "renyi_order": 4.0}, {"public_scores": "x"}, "renyi_order"),
        (
            {"sampling": dp.RandomAllocation(steps_per_pass=3)},
            {},
            "random allocation",
        ),
    ],
)
def test_what_has_no_bound_is_refused(make_plan, file, changes, options, reason):
    """Before anything is drawn."""
    plan = make_plan(**{"queries": (QUERY,), "steps": 3, **changes})
    about = {"candidates": [0.1], "plan": plan, "file": file, **options}

    with pytest.raises(ValueError, match=reason):
        dp.tune(Trainer(plan), **about)

    assert not file.exists()


def test_ranks_are_refused(plan, file, monkeypatch):
    """Each would draw a number of its own."""
    monkeypatch.setattr("dp.selection._tune.rank_and_size", lambda: (0, 2))

    with pytest.raises(UnsupportedOperationError, match="one of 2 ranks"):
        dp.tune(Trainer(plan), [0.1], plan=plan, file=file)


@pytest.mark.slow
def test_candidates_may_have_plans_of_their_own(make_plan, file, monkeypatch):
    """The bound is the worst one's; all state one delta, relation and unit."""
    fixed(monkeypatch, 1)
    plans = {
        sigma: make_plan(queries=(QUERY,), steps=3, noise_multiplier=sigma)
        for sigma in (1.0, 3.0)
    }
    trainer = Trainer(None)

    def train(sigma):
        trainer.plan = plans[sigma]
        return trainer(0.1)

    tuned = dp.tune(train, [1.0, 3.0], plan=plans.get, file=file, runs=FEW)

    worst = TuningCertificate.of([plans[1.0]], FEW, public_scores=None)
    assert tuned.best.candidate == 3.0
    assert tuned.certificate.epsilon >= worst.epsilon
    assert tuned.certificate.epsilon_of_one_run == worst.epsilon_of_one_run
    other = make_plan(queries=(QUERY,), target_delta=1e-6)
    with pytest.raises(ValueError, match="must share their target_delta"):
        TuningCertificate.of([plans[1.0], other], FEW, public_scores=None)


@pytest.mark.slow
def test_the_certificate_states_its_conditions_and_verifies(plan):
    """From its JSON alone; what is altered does not hold."""
    runs = dp.NegativeBinomialRuns(mean=5.0, shape=1.0)
    certificate = TuningCertificate.of([plan], runs, public_scores=None)

    # Of the number of runs 53 bits are drawn, and their law is summed in 53 bits.
    assert certificate.delta_error >= (1 + math.exp(certificate.epsilon)) * 2.0**-50
    text = certificate.to_text()
    assert "of shape 1 and mean 5; the number is secret" in text
    assert all(sentence in text for sentence in certificate.conditions)
    read = TuningCertificate.from_json(certificate.to_json())
    assert read == certificate
    assert dp.verify(read).ok
    lower = dict(vars_of(certificate), epsilon=certificate.epsilon / 2)
    unsaid = dict(vars_of(certificate), conditions=certificate.conditions[1:])
    elsewhere = dict(vars_of(certificate), delta=1e-3)
    for altered, claim in (
        (lower, "epsilon"),
        (unsaid, "conditions"),
        (elsewhere, "plans"),
    ):
        report = dp.verify(TuningCertificate(**altered))
        assert claim in [f.claim for f in report.findings if not f.holds]


@pytest.mark.parametrize("quick", [False, True])
def test_its_document_is_verified_as_any_other(plan, tmp_path, quick):
    """By the path of its JSON; what is stated twice, or was damaged, is refused."""
    certificate = TuningCertificate.of([plan], FEW, public_scores=None)
    path, text = tmp_path / "tuning.json", certificate.to_json()
    path.write_text(text)

    composed = ReferenceAccountant.epsilon_of_example
    with mock.patch.object(
        ReferenceAccountant, "epsilon_of_example", autospec=True, side_effect=composed
    ) as by_library:
        verified = dp.verify(path, quick=quick)

    assert verified.ok
    assert by_library.called is not quick
    claims = [finding.claim for finding in verified.findings]
    assert claims[:3] == ["document", "fields", "epsilon"]
    assert ("closed form" if quick else "by dp_accounting for one") in str(verified)
    path.write_text(text.replace('"epsilon"', '"epsilon": 0.1,\n  "epsilon"', 1))
    for read in (dp.verify, lambda at: TuningCertificate.from_json(at.read_text())):
        with pytest.raises(dp.LedgerError, match="states 'epsilon' more than once"):
            read(path)
    path.write_text(text.replace('"delta"', '"data"', 1))
    with pytest.raises(dp.LedgerError, match=r"not a certificate of dp\.tune"):
        dp.verify(path)


def vars_of(certificate):
    return {
        name: getattr(certificate, name) for name in certificate.__dataclass_fields__
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"group_size": 3}, "groups of 3"),
        ({"renyi_order": 8.0}, "renyi_order must be None"),
    ],
)
def test_plans_whose_best_run_has_no_bound_are_neither_stated_nor_verified(
    make_plan, changes, told
):
    """What was found is the cost of one unit, at numbers that are the plan's."""
    plan = make_plan(steps=3)
    certificate = TuningCertificate.of([plan], FEW, public_scores="a benchmark")
    other = make_plan(steps=3, **changes)

    with pytest.raises(ValueError, match=told):
        TuningCertificate.of([other], FEW, public_scores="a benchmark")
    altered = dict(vars_of(certificate), plans=(other,))
    report = dp.verify(TuningCertificate(**altered), quick=True)
    assert "bound" in [f.claim for f in report.findings if not f.holds]


@pytest.mark.slow
def test_scores_that_have_no_noise_do_not_verify(make_plan):
    """Neither answers nor public."""
    plan = make_plan(steps=3)
    public = TuningCertificate.of([plan], FEW, public_scores="a benchmark")
    assert dp.verify(public, quick=True).ok
    assert "without private data: a benchmark." in public.to_text()

    altered = dict(vars_of(public), public_scores=None)
    report = dp.verify(TuningCertificate(**altered))

    failed = [f.claim for f in report.findings if not f.holds]
    assert failed == ["scores", "conditions"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"epsilon"', '"epsilom"'),
        lambda text: text.replace('"delta": 1e-05', '"delta": 1e-06'),
        lambda text: text.replace("dp-tuning/1", "dp-tuning/2"),
        lambda _: "[]",
        lambda _: "nothing",
    ],
    ids=["name", "number", "format", "list", "text"],
)
def test_a_damaged_certificate_is_refused(plan, change):
    """Whatever was changed by accident."""
    text = TuningCertificate.of([plan], FEW, public_scores=None).to_json()

    with pytest.raises(dp.LedgerError, match=r"not a certificate of dp\.tune"):
        TuningCertificate.from_json(change(text))


def test_without_noise_no_bound_is_stated(make_plan):
    """Infinite numbers are written as strict JSON has them."""
    plan = make_plan(noise_multiplier=0.0, queries=(QUERY,), steps=3)

    certificate = TuningCertificate.of([plan], FEW, public_scores=None)

    assert certificate.epsilon == certificate.delta_error == math.inf
    assert TuningCertificate.from_json(certificate.to_json()) == certificate


@pytest.mark.statistical
@pytest.mark.parametrize(
    "runs", [dp.PoissonRuns(mean=2.0), dp.NegativeBinomialRuns(mean=2.0, shape=1.0)]
)
def test_the_number_of_runs_has_its_law(runs, decisions):
    """20 000 draws, in seven cells.

    False alarms: 1e-9. A mean of 2.2 in place of 2 is missed with probability 1e-9.
    """
    drawn = [draw_num_runs(runs) for _ in range(20_000)]
    law = dict(runs.probabilities())
    first = min(law)
    expected = [law[first + i] for i in range(6)]
    counts = [drawn.count(first + i) for i in range(6)]
    counts.append(len(drawn) - sum(counts))
    expected.append(1 - sum(expected))

    p = stats.chisquare(counts, [20_000 * share for share in expected]).pvalue

    assert not decisions.refutes("law", float(p))


def test_candidates_are_drawn_alike(decisions):
    """Each of 4 in a quarter of 20 000 runs. False alarms: 1e-9."""
    drawn = draw_candidates(20_000, 4)

    p = stats.chisquare([drawn.count(i) for i in range(4)]).pvalue

    assert not decisions.refutes("candidates", float(p))


def test_the_largest_coin_draws_the_largest_number(monkeypatch):
    """The law ends where the rest is negligible, and so does the draw."""

    class Largest:
        def random(self):
            return 1.0

    monkeypatch.setattr("dp.selection._draw.secrets.SystemRandom", Largest)
    law = dp.PoissonRuns(mean=2.0)

    assert draw_num_runs(law) == max(number for number, _ in law.probabilities())
