"""Read the packages as a tree of files: which imports which, and how long each is.

Nothing is imported or run; everything is read from the source.
"""

import ast
import io
import tokenize
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path


ROOT = Path(__file__).parents[1]
PACKAGES = ("dp", "forwarding")

# Files that are imported by a name which is put together at run time.
LOADED_BY_NAME = {
    "dp/noise/_device/chacha.py": "dp/noise/_device/kernels/",
    "dp/noise/_host/compiled_stage.py": "dp/noise/_host/kernels/",
}

_NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def files() -> tuple[str, ...]:
    """Return the path of every Python file of the packages."""
    return tuple(
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    )


@cache
def code_lines(path: str) -> int:
    """Return how many lines of a file hold code."""
    return count_code_lines((ROOT / path).read_text("utf-8"))


def count_code_lines(source: str) -> int:
    r"""Return how many lines are neither blank, nor comments, nor docstrings.

    >>> count_code_lines('def f():\n    "Do it."\n\n    return [  # why\n    ]\n')
    3
    """
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _Documented) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines.difference_update(
                range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1)
            )
    return len(lines)


@cache
def imports(path: str) -> frozenset[str]:
    """Return the files of the packages that a file imports, anywhere in it."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    named = {file for name in _imported(tree) if (file := _file_of(name))}
    by_name = LOADED_BY_NAME.get(path)
    if by_name is not None:
        named |= {file for file in files() if file.startswith(by_name)}
    return frozenset(named - {path})


def reachable(roots: Collection[str], *, beyond: Collection[str] = ()) -> set[str]:
    """Return the files that *roots* import, directly or not, and *roots*.

    Args:
        roots: Where to begin.
        beyond: Files whose own imports are not followed.
    """
    found, upcoming = set[str](), set(roots)
    while upcoming:
        path = upcoming.pop()
        found.add(path)
        if path not in beyond:
            upcoming |= imports(path) - found
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted name of every import, submodules in place of packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _file_of(inner) else node.module


def _file_of(module: str) -> str | None:
    """Return the file of a module of the packages; None for any other module."""
    stem = module.replace(".", "/")
    known = set(files())
    candidates = (f"{stem}.py", f"{stem}/__init__.py")
    return next((path for path in candidates if path in known), None)
