"""The map of ``dp`` is the one that the code shows."""

import itertools
import re

import architecture
import pytest
from layered_picture import draw
from source_tree import ROOT


@pytest.mark.slow
def test_the_table_of_rooms_is_as_the_code_is():
    """``python docs/architecture.py`` was run after the last change."""
    page = architecture.PAGE.read_text("utf-8")

    assert architecture.contradictions() == []
    assert architecture.rewritten(page) == page


def test_the_picture_is_as_the_code_is():
    """``python docs/architecture.py`` was run after the last change."""
    assert architecture.PICTURE.read_text("utf-8") == architecture.picture()


@pytest.mark.slow
def test_a_stale_table_would_be_found():
    """The tests above can fail."""
    page = architecture.PAGE.read_text("utf-8").replace("| `ledger` |", "| `book` |")

    assert architecture.rewritten(page) != page


def test_every_arrow_points_downwards():
    """The picture's layers are those of the contract, and the code keeps them."""
    depth = {room: i for i, row in enumerate(architecture.layers()) for room in row}

    for room, below in architecture.arrows().items():
        assert all(depth[room] < depth[other] for other in below), room


def test_an_arrow_that_others_lead_along_is_left_out():
    """What is drawn reaches the same rooms as what is imported."""
    assert architecture.reduced({"a": {"b", "c"}, "b": {"c"}}) == {
        "a": {"b"},
        "b": {"c"},
    }


def test_every_function_on_the_way_of_a_batch_exists():
    """The page names functions that are where it says."""
    named = re.findall(
        r"^\| \d+ \| `([\w/]+\.py)` \| `(\w+)` \|",
        architecture.PAGE.read_text("utf-8"),
        re.MULTILINE,
    )

    assert len(named) == 13
    for file, function in named:
        source = (ROOT / "dp" / file).read_text("utf-8")
        assert re.search(rf"^ *def {function}\(", source, re.MULTILINE), (
            file,
            function,
        )


def test_every_file_where_a_change_goes_exists():
    """So do the files and folders that the page sends a change to."""
    page = architecture.PAGE.read_text("utf-8")
    _, _, changes = page.partition("## Where does my change go?")
    named = set(re.findall(r"`((?:[\w-]+/)+(?:\w+\.py)?)`", changes))

    assert len(named) > 10
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "dp" / path).exists(), path


def test_boxes_of_a_picture_stand_apart():
    """However many arrows there are, no box covers another."""
    layers = [["top"], ["one", "two", "three", "four"], ["bottom"]]
    arrows = {"top": [*layers[1], "bottom"], **{name: ["bottom"] for name in layers[1]}}

    svg = draw(layers, arrows, title="A picture")

    boxes = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" [^>]*rx=', svg)
    spans = sorted((int(y), int(x), int(x) + int(width)) for x, y, width in boxes)
    for (y, _, end), (next_y, start, _) in itertools.pairwise(spans):
        assert y != next_y or end < start
    assert svg.count("marker-end") == 9
