# SPDX-License-Identifier: Apache-2.0
"""The documentation site: its table of contents has every page, its reference everything that is
public, with a docstring and with types, its command line every option; and Sphinx has no warning
about any of it."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import site_build as build
import site_commands as commands
import site_contents as contents
import site_docstrings as docstrings
import site_reference as reference
import support
from support import ROOT

from pyccmem.cli.entry import COMMANDS, parser_of

SITE = ROOT / "docs" / "site"

needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
    reason="the site's packages are not installed: make docs",
)


# ---- the pages ---------------------------------------------------------------------------------


def test_every_page_has_its_place() -> None:
    listed = contents.listed()
    written = {page for page in (ROOT / "docs").rglob("*.md") if SITE not in page.parents}
    missing = [page.relative_to(ROOT).as_posix() for page in sorted(written - set(listed))]
    assert not missing, f"docs/README.md, the table of contents, does not list {missing}"
    assert {ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "ARCHITECTURE.md"} <= set(listed)
    names = [contents.docname_of(page) for page in listed]
    assert len(set(names)) == len(names) == len(listed)


def test_the_sections_are_those_of_the_issue() -> None:
    titles = [section.title for section in contents.sections()]
    for wanted in ("Start", "Guides", "Concepts", "Reference", "Benchmarks", "Design", "Changes"):
        assert any(title.startswith(wanted) for title in titles), wanted


@pytest.mark.parametrize(
    "text, words",
    [("## A\n[x](nothing.md)", "not there"), ("## A\n[x](keys.md)\n## B\n[x](keys.md)", "twice")],
)
def test_a_wrong_table_of_contents_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        contents.sections(text)


def test_links_become_those_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "keys.md"
    text = (
        "[a](torch.md#x) [b\nc](../README.md) [`d`](../csrc/ccmem.h) [e](https://x.org) [f](#g) "
        "`[h](torch.md)`"
    )
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(Path, "read_text", lambda *_: text)
    names = {ROOT / "docs" / "torch.md": "torch", ROOT / "README.md": "overview"}
    for address, d in (
        (None, "`d`"),
        ("https://f.org/p", "[`d`](https://f.org/p/blob/main/csrc/ccmem.h)"),
    ):
        monkeypatch.setattr(build, "repository", lambda address=address: address)
        assert build.converted(page, names, {}) == (
            f"[a](/torch.md#x) [b\nc](/overview.md) {d} [e](https://x.org) [f](#g) `[h](torch.md)`"
        )


# ---- the reference -----------------------------------------------------------------------------


def needed(name: str) -> str | None:
    """What a public module needs and is not here."""
    package = name.rpartition(".")[2]
    wanted = {
        "torch": ["torch"],
        "transformers": ["torch", "transformers"],
        "ray": ["ray"],
        "langchain": ["langchain_core"],
        "llama_index": ["llama_index"],
    }
    missing = [p for p in wanted.get(package, []) if importlib.util.find_spec(p) is None]
    return ", ".join(missing) or None


def module_of(name: str) -> Any:
    missing = needed(name)
    if missing:
        pytest.skip(f"{name} needs {missing}")
    return importlib.import_module(name)


def members(kind: type) -> dict[str, Any]:
    """What a class of pyccmem offers of its own: its public methods, and its constructor."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("pyccmem"):
            continue
        for name, thing in vars(base).items():
            if name == "__init__" or not name.startswith("_"):
                found[name] = thing
    return found


def functions(thing: Any) -> list[Any]:
    """The functions of a member of a class: a property has one, a field none."""
    if isinstance(thing, (classmethod, staticmethod)):
        return [thing.__func__]
    if isinstance(thing, property):
        return [thing.fget]
    return [thing] if inspect.isfunction(thing) else []


def faults_of_signature(where: str, function: Any) -> list[str]:
    found = []
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if not parameter.name.strip("_"):
            found.append(f"{where}: a parameter without a name")
        if parameter.annotation is inspect.Parameter.empty:
            found.append(f"{where}: {parameter.name} without a type")
    if signature.return_annotation is inspect.Signature.empty:
        found.append(f"{where}: nothing says what it returns")
    return found


#: Methods that another library calls, by a signature of that library's.
THEIRS = re.compile(r"pyccmem\.transformers\.(PyccmemQuantizer|Encrypted\w+|PyccmemConfig)\.")


def faults_of(module: Any) -> list[str]:
    found = []
    for own, thing in reference.public_names(module):
        where = f"{module.__name__}.{own}"
        if inspect.isclass(thing):
            if not (thing.__doc__ or "").strip():
                found.append(f"{where}: no docstring")
            if issubclass(thing, BaseException):
                continue
            if not vars(thing).get("__signature__"):
                call = members(thing).get("__init__")
                if inspect.isfunction(call) and call.__module__.startswith("pyccmem"):
                    found += faults_of_signature(where, call)
            for name, member in members(thing).items():
                if name == "__init__" or THEIRS.match(f"{where}.{name}"):
                    continue
                for function in functions(member):
                    if not (inspect.getdoc(getattr(thing, name, None)) or "").strip():
                        found.append(f"{where}.{name}: no docstring")
                    found += faults_of_signature(f"{where}.{name}", function)
        elif inspect.isfunction(thing):
            if not (thing.__doc__ or "").strip():
                found.append(f"{where}: no docstring")
            found += faults_of_signature(where, thing)
    return found


@pytest.mark.parametrize("name", reference.MODULES)
def test_everything_public_is_described_and_typed(name: str) -> None:
    assert not faults_of(module_of(name))


def test_what_is_not_described_is_noticed() -> None:
    """The control."""

    class Kind:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        __init__.__module__ = "pyccmem.nothing"

        def method(self, x, y: int = 1): ...

    Kind.__module__ = "pyccmem.nothing"
    module = type("M", (), {"__name__": "pyccmem.nothing", "__all__": ["Kind"], "Kind": Kind})
    found = faults_of(module)
    assert len(found) == 6, found
    assert sum("without a name" in fault for fault in found) == 2


def test_every_public_module_is_in_the_reference() -> None:
    named = re.search(
        r"of (`safetensors`.*?) what their `__init__`",
        contents.ROOT.joinpath("ARCHITECTURE.md").read_text("utf-8"),
        re.DOTALL,
    )
    assert named is not None
    for name in re.findall(r"`([\w.]+)`", named[1]):
        assert f"pyccmem.{name}" in reference.MODULES


def test_a_page_of_the_reference() -> None:
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    homes: dict[int, str] = {}
    page = reference.page_of("pyccmem", homes)
    assert ".. autoclass:: pyccmem.EncryptedBuffer\n   :members:\n" in page
    assert ".. autofunction:: pyccmem.linear" in page
    other = reference.page_of("pyccmem.quantized", homes)
    assert "``QuantizedTensor`` is :class:`pyccmem.QuantizedTensor`." in other


def test_docstrings_become_restructured_text() -> None:
    text = (
        "Returns `x` of *args, a_ and Key.\n"
        "Raises RangeError.\n\n"
        "    >>> f(1)\n\n"
        "    >>> f(2)\n\n"
        "a    the first\n"
        "bb   the second"
    )
    assert docstrings.restructured(text.splitlines(), frozenset(["RangeError"])) == [
        "Returns ``x`` of \\*args, a\\_ and Key.",
        "Raises :exc:`~pyccmem.errors.RangeError`.",
        "",
        ".. code-block:: pycon",
        "",
        "   >>> f(1)",
        "",
        "   >>> f(2)",
        "",
        ".. code-block:: text",
        "",
        "   a    the first",
        "   bb   the second",
        "",
    ]


# ---- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_of_the_command_line_has_every_option(name: str) -> None:
    parser = parser_of(name)
    page = commands.page_of(parser, COMMANDS[name])
    assert page.startswith(f"# pyccmem {name}\n")
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    options = [o for p in parsers for a in commands.options_of(p) for o in a.option_strings]
    assert options and all(f"`{option}" in page for option in options)
    assert not re.search(r"%\(\w+\)|==SUPPRESS==|\bNone\b.*\|$", page, re.MULTILINE)


def test_every_command_is_on_the_page_about_commands() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert [name for name in COMMANDS if not re.search(rf"`(pyccmem )?{name}\b", page)] == []


# ---- the whole ---------------------------------------------------------------------------------


@needs_sphinx
@pytest.mark.full
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SITE / "site_build.py"), str(tmp_path)],
        env=support.child_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    html = tmp_path / "html"
    for page in contents.listed():
        assert (html / f"{contents.docname_of(page)}.html").is_file()
    tensor = (html / "reference" / "pyccmem.html").read_text("utf-8")
    assert 'id="pyccmem.EncryptedTensor.from_numpy"' in tensor and "**__" not in tensor
    assert (html / "searchindex.js").stat().st_size > 100_000
    assert "--seal-names" in (html / "commands" / "encrypt.html").read_text("utf-8")
    assert (tmp_path / "external.txt").read_text("utf-8").count("https://") > 2


@needs_sphinx
@pytest.mark.full
def test_a_warning_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a heading that is not there."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text("# Title\n\n[x](#nowhere)\n")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-c", str(SITE), "-W", "-q", str(tmp_path / "source"),
         str(tmp_path / "html")],
        env=support.child_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "nowhere" in done.stderr, done.stderr
