"""What the documentation's own configuration and theme add to a site."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from versions import versions_in, write_versions


DOCS = Path(__file__).parents[1] / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def site(folder, *names):
    """A site with pages in these folders."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "index.html").touch()
    return folder


def test_versions_are_listed_from_the_newest(tmp_path):
    """By their numbers, not by their letters; a release candidate precedes its version."""
    site(tmp_path, "0.9.0", "0.10.0", "1.0.0rc1", "1.0.0")

    assert versions_in(tmp_path) == ["1.0.0", "1.0.0rc1", "0.10.0", "0.9.0"]


def test_folders_that_are_no_version_are_not_listed(tmp_path):
    """Neither other names, nor versions without pages."""
    site(tmp_path, "0.1.0", "images")
    (tmp_path / "0.2.0").mkdir()

    assert versions_in(tmp_path) == ["0.1.0"]


def test_the_list_is_a_script(tmp_path):
    """One statement, which the pages of every version read."""
    write_versions(site(tmp_path, "0.1.0", "0.2.0"))

    text = (tmp_path / "versions.js").read_text("utf-8")
    assert text == 'window.DOCUMENTED_VERSIONS = ["0.2.0", "0.1.0"];\n'


def test_a_site_without_versions_is_refused(tmp_path):
    """With the remedy, and nothing is written."""
    with pytest.raises(
        ValueError, match=r"build the pages into one, such as SITE/1\.0"
    ):
        write_versions(site(tmp_path, "images"))

    assert not (tmp_path / "versions.js").exists()


def test_the_command_of_the_release_list_writes_it(tmp_path):
    """As CONTRIBUTING names it."""
    site(tmp_path, "0.1.0")

    subprocess.run([sys.executable, DOCS / "versions.py", tmp_path], check=True)

    assert (tmp_path / "versions.js").exists()
    release = (DOCS.parent / "CONTRIBUTING.md").read_text("utf-8")
    assert "`python docs/versions.py SITE`" in release


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A site of one page in a folder, with the configuration of the documentation."""
    pytest.importorskip("furo")  # With Sphinx, of the group "docs".
    root = tmp_path_factory.mktemp("site")
    source = root / "source/how-to"
    source.mkdir(parents=True)
    (source.parent / "index.md").write_text(
        "# Start\n\n```{toctree}\nhow-to/page\n```\n", encoding="utf-8"
    )
    (source / "page.md").write_text(
        "# Page\n\n```python\n>>> 1 + 1\n2\n\n```\n", encoding="utf-8"
    )
    build = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", DOCS]
    subprocess.run([*build, source.parent, root / "0.1.0"], check=True, timeout=120)
    return root


@pytest.mark.slow
def test_every_page_looks_for_the_list_beside_its_version(pages):
    """By a relative address, so that a site may lie anywhere."""
    for page, root in (("index", "./"), ("how-to/page", "../")):
        text = (pages / f"0.1.0/{page}.html").read_text("utf-8")

        assert f'<script defer src="{root}../versions.js"></script>' in text
        assert re.search(r'class="version-switcher"[^>]* hidden>', text)


def test_a_block_ends_with_its_last_line(pages):
    """A doctest needs a blank line there, which readers need not see; it stays coloured."""
    text = (pages / "0.1.0/how-to/page.html").read_text("utf-8")
    block = re.search(r"<pre>(.*?)</pre>", text, re.DOTALL)[1]

    assert '<span class="mi">1</span>' in block
    assert block.rstrip("\n").endswith('<span class="go">2</span>')
    assert not block.endswith("\n\n")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("is_listed", [True, False])
def test_a_browser_shows_the_menu_only_where_there_is_a_list(
    pages, is_listed, tmp_path
):
    """The version that is read is chosen in it."""
    (pages / "versions.js").unlink(missing_ok=True)
    if is_listed:
        site(pages, *({"0.2.0"} - {folder.name for folder in pages.iterdir()}))
        write_versions(pages)
    shown = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (pages / "0.1.0/how-to/page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    menu = re.search(r'<label class="version-switcher".*?</label>', shown, re.DOTALL)[0]

    assert ("hidden" not in menu) == is_listed
    assert re.findall(r"<option value=\"(.*?)\"", menu) == (
        ["0.2.0", "0.1.0"] if is_listed else []
    )
