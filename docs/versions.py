"""Write the menu of versions of a documentation site.

``python docs/versions.py SITE`` lists the folders of SITE that are called by a version
and hold its pages, the newest first, in ``SITE/versions.js``. Every page reads it, those
of old versions too, and shows no menu where there is none.
"""

import argparse
import json
from pathlib import Path

from packaging.version import InvalidVersion, Version


__all__ = ("versions_in", "write_versions")


def versions_in(site: Path) -> list[str]:
    """Return the versions whose pages are in *site*, the newest first."""
    found = {}
    for index in site.glob("*/index.html"):
        try:
            found[Version(index.parent.name)] = index.parent.name
        except InvalidVersion:
            continue
    return [found[version] for version in sorted(found, reverse=True)]


def write_versions(site: Path) -> None:
    """Write ``versions.js``.

    Raises:
        ValueError: If there are no pages of any version.
    """
    versions = versions_in(site)
    if not versions:
        raise ValueError(
            f"{site} has no folder called by a version that holds an index.html; build"
            " the pages into one, such as SITE/1.0.0"
        )
    text = f"window.DOCUMENTED_VERSIONS = {json.dumps(versions)};\n"
    (site / "versions.js").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    write_versions(parser.parse_args().site)
