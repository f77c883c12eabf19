"""That the report's page says what the certificate says, loads nothing and fits."""

import dataclasses
import html
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser

import pytest

from dp import (
    BandedNoise,
    CyclicPoisson,
    GaussianNoise,
    PoissonSampling,
    PrivacyPlan,
    Query,
    RandomAllocation,
    Schedule,
    compose,
)
from dp.certificate import Certificate, Scores, _page
from dp.certificate._chart import Bar, Chart, Line, Mark, ticks
from dp.certificate._picture import epsilon_over_steps, targets
from dp.ledger import Ledger
from dp.sampling import PassStep


HOSTILE = "<script>alert('x')</script> & \"one\""
VOID = {"meta", "link", "br"}


@pytest.fixture(autouse=True)
def _unconfirmed(monkeypatch):
    """Write certificates without asking dp_accounting, which takes seconds for each."""
    for check in ("check_agreement", "check_recomputed"):
        monkeypatch.setattr(f"dp.certificate._document.{check}", lambda *_, **__: None)


def certificate(count=10, *, about=None, **changes):
    """The certificate of a run of 20 planned steps, of which *count* were taken."""
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.25),
        "noise_multiplier": 8.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 10.0,
        "steps": 20,
        "target_delta": 1e-5,
        "unit_of_privacy": "one patient",
    }
    plan = PrivacyPlan(**{**numbers, **changes})
    ledger = Ledger(plan)
    for step in range(count):
        ledger.reserve(
            sampling_probability=plan.sampling_probability,
            noise_multiplier=plan.noise_multiplier_at(step),
            max_grad_norm=1.0,
            in_pass=place(plan, step),
        )
    return Certificate.of(
        ledger, noise=GaussianNoise(), num_parameters=1000, **(about or {})
    )


def place(plan, step):
    """Where a step is in its pass or round, if batches are drawn by these."""
    steps = plan.steps_per_pass or plan.bands
    if steps is None:
        return None
    chain = 1 if plan.bands else None
    return PassStep(
        number=step // steps, step=step % steps, num_steps=steps, chain=chain
    )


def scores(**changes):
    about = {
        "name": "accuracy",
        "data": "patients.csv",
        "steps": (0, 10, 20),
        "values": (0.1, 0.5, 0.7),
        "highest": 1.0,
    }
    return Scores(**{**about, **changes})


class Page(HTMLParser):
    """The words of a page, what it refers to, and whether its elements nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.names, self.words, self.references = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.references += [v for k, v in attrs if k in {"src", "href", "xlink:href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert not [name for name, _ in attrs if name in {"src", "href"}]
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


RUNS = {
    "whole": lambda: certificate(20, target_epsilon=3.0),
    "early": certificate,
    "none": lambda: certificate(0),
    "no noise": lambda: certificate(noise_multiplier=0.0),
    "group": lambda: certificate(group_size=3),
    "replaced": lambda: certificate(neighboring_relation="replace_one"),
    "filter": lambda: certificate(renyi_order=8.0, target_epsilon=3.0),
    "allocation": lambda: certificate(
        20, sampling=RandomAllocation(steps_per_pass=4), compared=("Two ways.",)
    ),
    "schedule": lambda: certificate(
        noise_multiplier=Schedule(((5, 8.0), (15, 9.0))), target_epsilon=3.0
    ),
    "correlated": lambda: certificate(
        20,
        sampling=CyclicPoisson(sampling_probability=0.25, bands=4),
        correlation=BandedNoise.square_root(4),
    ),
    "queries": lambda: certificate(
        queries=(
            Query(name="adults", noise_multiplier=5.0),
            Query(name="ages", noise_multiplier=5.0, num_values=3),
        )
    ),
    "two": lambda: compose(certificate(), certificate(noise_multiplier=9.0)),
}


run_of = cache(lambda kind: RUNS[kind]())


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_the_page_is_one_file_that_loads_nothing(kind):
    """Elements nest, nothing is referred to, and no number is missing."""
    text = run_of(kind).to_html(scores=scores())
    page = Page(text)

    assert not page.open
    assert page.references == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|<script|nan|Undefined", text)
    assert {"html", "title", "main", "table"} <= set(page.names)


def test_the_page_states_what_the_certificate_states():
    """Epsilon, the unit, every assumption, what is not covered, the plan, the risk."""
    stated = certificate(
        20, target_epsilon=3.0, about={"assumptions": ("They agreed.",)}
    )
    text = Page(stated.to_html()).text

    for words in (
        *stated.assumptions,
        *stated.not_covered,
        *stated.software.values(),
        stated.released,
        stated.runs[0].plan_sha256[:16],
        f"{stated.epsilon:.6g}, 1e-5 (PLD)",
        "datasets that differ by one unit more or less",
        "find out about one patient, at most",
        "wants to tell whether one unit was in the data",
        "20 x q = 0.25, sigma = 8, C = 1",
        "Not stated: whether hyper-parameters",
        "differentially private",
        "found the same epsilon",
        "python -m dp verify certificate.json",
    ):
        assert words in text, words
    assert "of guesses at even odds are right" in text
    assert "What an attack can find at most guessing" in text


def test_numbers_on_the_page_are_not_rounded_down():
    """What is claimed in a headline is at least what the certificate states."""
    stated = certificate()
    text = Page(stated.to_html()).text

    shown = float(re.search(r"ε = ([\d.]+)", text).group(1))
    guess = float(re.search(r"([\d.]+) % of guesses", text).group(1))
    assert stated.epsilon <= shown < 1.001 * stated.epsilon
    assert stated.risk.best_guess <= guess / 100 < stated.risk.best_guess + 0.001
    assert _page._upwards(2.001) == "2.01"
    assert _page._upwards(2.0001, 4) == "2.001"
    assert _page._percent(0.58001) == "58.1 %"


def test_words_of_users_are_escaped():
    """A unit, a touch or a name of data is text, whatever it looks like."""
    stated = certificate(
        unit_of_privacy=HOSTILE,
        about={"private_data_touches": (HOSTILE,), "assumptions": (HOSTILE,)},
    )
    text = stated.to_html(scores=scores(data=HOSTILE, name=HOSTILE, verdict=HOSTILE))

    assert "<script" not in text
    assert html.escape(HOSTILE, quote=False).replace("&amp;", "&amp;")[:20] in text
    assert Page(text).text.count("alert('x')") >= 6


def test_a_run_without_privacy_says_so_first():
    """In the title, in the headline, and where the risk would be."""
    page = Page(certificate(noise_multiplier=0.0).to_html())

    assert page.text.startswith("Not private")
    assert "a release had no noise, so epsilon is infinite" in page.text
    assert "Nothing bounds how surely" in page.text
    assert "svg" not in page.names
    assert "same epsilon" not in page.text


@pytest.mark.parametrize(
    ("kind", "told", "untold"),
    [
        ("filter", "Renyi filter of order 8", "same epsilon"),
        ("filter", "of guesses at even odds", "What an attack can find"),
        ("allocation", "above a lower bound", "same epsilon"),
        ("allocation", "none is proven for random allocation", "units)"),
        ("allocation", "the plan compared Two ways.", "Run 1"),
        ("none", "releases none", "same epsilon"),
        ("correlated", "none is proven for cyclic Poisson sampling", "units)"),
        ("correlated", "correlated noise 4 bands: ", "asked or not"),
        ("queries", "adults: 1 number, sigma = 5; ages: 3 numbers", "bands"),
        ("two", "Run 2", "target 3"),
        ("group", "any 3 of them are protected at once", "Run 1"),
        ("replaced", "which of two units was in the data", "Run 1"),
        ("early", "ended here", "Run 1"),
    ],
)
def test_every_kind_of_run_is_told_as_what_it_is(kind, told, untold):
    """What was not computed twice is not said to agree."""
    text = Page(run_of(kind).to_html()).text

    assert told in text
    assert untold not in text


def test_declared_tensors_and_looks_are_told():
    """What was declared public, and who looked at private data."""
    stated = certificate(about={"private_data_touches": ()})
    (run,) = stated.runs
    declared = dataclasses.replace(run, declared_public=("a mask, of 3 numbers",))
    text = Page(dataclasses.replace(stated, runs=(declared,)).to_html()).text

    assert "declared public, as constants of the program a mask, of 3 numbers" in text
    assert "By nothing." in text


def test_where_nothing_was_checked_the_page_says_so():
    """As of statistics alone, whose losses are none, without noise."""
    stated = certificate(noise_multiplier=0.0, about={"released": "two counts"})

    assert "Nothing beyond the assumptions above." in Page(stated.to_html()).text


def test_of_many_releases_the_first_are_listed():
    """A page stays a page; the JSON has them all."""
    stated = certificate(noise_multiplier=0.0)  # No chart is drawn, which takes long.
    (run,) = stated.runs
    (charge,) = run.charges
    charges = tuple(
        dataclasses.replace(charge, count=1, noise_multiplier=8 + 0.01 * i)
        for i in range(30)
    )
    many = dataclasses.replace(run, segments=dict.fromkeys(run.segments, charges))
    text = Page(dataclasses.replace(stated, runs=(many,)).to_html()).text

    assert "sigma = 8.19" in text
    assert "sigma = 8.2," not in text
    assert "and 10 more, in certificate.json" in text


def test_scores_are_shown_beside_the_certificate():
    """Their chart, the run without privacy, the verdict, and that they are not covered."""
    stated = certificate()
    twin = ((0, 0.1), (20, 0.9))
    good = Page(
        stated.to_html(
            scores=scores(without_privacy=twin, verdict="Fine", is_good=True)
        )
    ).text
    bad = Page(stated.to_html(scores=scores(verdict="Bad", is_good=False))).text
    diverged = stated.to_html(scores=scores(values=(0.1, float("nan"), float("inf"))))
    short = Page(stated.to_html(scores=scores(steps=(1,), values=(0.5,)))).text

    for words in (
        "patients.csv",
        "Accuracy over the steps",
        "without privacy",
        "Fine.",
    ):
        assert words in good
    assert "no part of the certificate" in good
    assert "no better than one that knows nothing: Bad." in bad
    assert "Accuracy over the steps" not in short
    assert not re.search(r'points="[^"]*(nan|inf)', diverged)
    with pytest.raises(ValueError, match="values must be one for each of the 2 steps"):
        scores(steps=(1, 2))


@pytest.mark.slow
def test_it_is_written_with_the_certificate(tmp_path):
    """As ``index.html``, which a browser opens by itself."""
    stated = certificate()
    stated.write(tmp_path, scores=scores())

    text = (tmp_path / "index.html").read_text("utf-8")
    assert text == stated.to_html(scores=scores())


def test_the_curve_of_a_run_ends_at_its_epsilon():
    """Also where queries are counted, which are no steps."""
    for kind in ("early", "queries"):
        stated = run_of(kind)
        steps, costs = zip(*epsilon_over_steps(stated), strict=True)

        assert steps == tuple(range(1, 21))
        assert costs[-1] == pytest.approx(stated.epsilon, rel=1e-9)
        assert sorted(costs) == list(costs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "delta", "marked"),
    [
        ([{}], None, []),
        ([{"target_epsilon": 3.0}], None, [(3.0, "target 3")]),
        ([{"target_epsilon": 3.0}] * 2, None, [(3.0, "target of each run: 3")]),
        (
            [{"target_epsilon": 3.0}, {}, {"target_epsilon": 2.50001}],
            None,
            [(2.50001, "target of run 3: 2.5"), (3.0, "target of run 1: 3")],
        ),
        (
            [{"target_epsilon": 3.0}, {}, {"target_epsilon": 3.0}],
            1e-4,
            [(3.0, "target of each of 2 runs: 3 at delta 1e-05")],
        ),
    ],
    ids=["none", "one", "the same", "several", "at another delta"],
)
def test_the_targets_of_all_runs_are_marked(monkeypatch, runs, delta, marked):
    """Each with whose it is: what runs cost together may exceed the target of each."""
    # The curves themselves, which take seconds, do not depend on targets.
    monkeypatch.setattr(_page, "epsilon_over_steps", lambda _: [(1, 0.5), (20, 1.0)])
    monkeypatch.setattr(_page, "attack_curve", lambda _: [])
    made = [
        certificate(noise_multiplier=8.0 + place, **run)
        for place, run in enumerate(runs)
    ]
    stated = made[0] if len(made) == 1 else compose(*made, delta=delta)

    assert targets(stated) == marked
    assert targets(stated, 4.0) == [(4.0, "target 4")]
    text = stated.to_html()
    assert text.count('<line class="target"') == len(marked)
    assert all(f">{words}</text>" in text for _, words in marked)


def test_points_are_drawn_where_their_values_are():
    """Between the ticks, in proportion; y grows downwards in SVG."""
    chart = Chart(
        title="t",
        x_label="x",
        y_label="y",
        lines=[Line(points=[(0, 0.0), (50, 1.0), (100, 4.0)], label="l")],
        targets=[Mark(value=5.0, label="target")],
    )
    (_, points), *_ = chart.paths
    ((x0, y0), (x1, y1), (x2, y2)) = (
        map(float, pair.split(",")) for pair in points.split()
    )

    assert (x0, x2) == (chart.left, chart.right)
    assert x1 == (x0 + x2) / 2
    assert y0 == chart.bottom
    assert (y0 - y2) == pytest.approx(4 * (y0 - y1), abs=0.2)
    assert chart.top < chart.y(5.0) < y2
    assert [words for _, words in chart.x_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [words for _, words in chart.y_ticks] == ["0", "2", "4"]


def test_bars_stand_on_the_axis_beside_one_another():
    """Each in the middle of its part, in proportion to its value."""
    bars = [Bar(label="1", value=2.0), Bar(label="5", value=4.0)]
    chart = Chart(title="t", x_label="x", y_label="y", bars=bars)
    (_, x0, y0, width), (_, x1, y1, _) = chart.boxes

    assert chart.left < x0 < x0 + width < x1 < x1 + width < chart.right
    assert chart.bottom - y1 == pytest.approx(2 * (chart.bottom - y0))
    assert [words for _, words in chart.x_ticks] == ["1", "5"]


def test_a_chart_of_equal_or_no_values_has_a_scale():
    """Nothing is divided by 0."""
    flat = Line(points=[(0, 0.5), (0, 0.5)], label="flat")
    for lines in ([flat], []):
        for lowest in (0.5, None, 0.0):
            chart = Chart(
                title="t", x_label="x", y_label="y", lines=lines, lowest=lowest
            )
            assert chart.y_ticks
            assert chart.x_ticks


def test_the_best_score_there_is_ends_the_axis():
    """Accuracy above 1 is no tick."""
    line = Line(points=[(0, 0.2), (10, 0.99)], label="accuracy")
    chart = Chart(
        title="t", x_label="x", y_label="y", lines=[line], lowest=None, highest=1.0
    )

    assert [words for _, words in chart.y_ticks][-1] == "1"
    assert chart.y(1.0) == chart.top


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 0.003, [0, 0.001, 0.002, 0.003]),
        (-3, 7, [-2, 0, 2, 4, 6]),
        (0, 12345, [0, 5000, 10000]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    """Of 1, 2 or 5 times a power of ten."""
    assert ticks(low, high) == expected


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MEASURE = """<!doctype html><body><iframe id="f" style="width:{width}px;height:800px;border:0"
 srcdoc="{page}"></iframe><script>
onload = () => {{
  const seen = document.getElementById("f").contentDocument;
  const bars = [...seen.querySelectorAll("svg")].map(e => e.getBoundingClientRect().width);
  document.body.textContent = "measured " + JSON.stringify({{
    width: seen.documentElement.scrollWidth, drawn: Math.min(...bars)}});
}};</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("width", [360, 1100])
def test_a_browser_shows_the_page_without_scrolling_sideways(tmp_path, width):
    """On a phone and on a screen: all fits, and the charts are as wide as they may."""
    page = run_of("whole").to_html(scores=scores())
    file = tmp_path / "measure.html"
    file.write_text(
        MEASURE.format(width=width, page=html.escape(page)), encoding="utf-8"
    )
    shown = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1300,900",
            "--virtual-time-budget=5000",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    found = re.search(r'measured {"width":([\d.]+),"drawn":([\d.]+)}', shown)

    assert float(found.group(1)) <= width
    assert float(found.group(2)) > 250
