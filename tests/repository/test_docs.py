# SPDX-License-Identifier: Apache-2.0
"""Every code block of the README and of docs/ runs as it is written, and prints what it says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import docs_outputs
import docs_support
import pytest
import support
from docs_support import (
    OUTPUT,
    ROOT,
    Block,
    blocks,
    commands,
    folder_of,
    imports,
    is_foreign,
    pages,
    says,
)

import pyccmem

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")


def runs(block: Block) -> bool:
    return block.language in ("python", "sh") and not block.left_out


#: Pages with something to run, and the packages they need that are missing.
MISSING = {
    name: sorted(p for p in imports(page) if importlib.util.find_spec(p) is None)
    for name, page in PAGES.items()
    if any(map(runs, blocks(page)))
}
if support.SANITIZED:  # its block looks through all memory, of which a sanitizer maps terabytes
    MISSING["docs/audit.md"].append("a process without a sanitizer")


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The lines that each page printed."""
    folder = tmp_path_factory.mktemp("docs")
    here = [PAGES[name] for name, missing in MISSING.items() if not missing]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests" / "support" / "docs_support.py"),
            str(folder),
            *map(str, here),
        ],
        env=support.child_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        name: (folder_of(page, folder).with_suffix(OUTPUT)).read_text("utf-8").splitlines()
        for name, page in PAGES.items()
        if page in here
    }


@pytest.mark.parametrize("name", MISSING)
def test_blocks_run(name: str, outputs: dict[str, list[str]]) -> None:
    if MISSING[name]:
        pytest.skip(f"{name} needs {', '.join(MISSING[name])}")
    count = sum(map(runs, blocks(PAGES[name])))
    assert outputs[name][-2:] == [f"{count} blocks", "exit status 0"], "\n".join(outputs[name])


def test_the_pages_are_all_there() -> None:
    assert {"README.md", "docs/transformers.md", "docs/sealed-files.md"} < set(MISSING)


@pytest.mark.parametrize("name", PAGES)
def test_lines_that_install_or_call_make(name: str) -> None:
    """They name extras, packages and targets that there are."""
    table = PROJECT.split("[project.optional-dependencies]")[1].split("\n[project.scripts]")[0]
    extras = set(re.findall(r"^([a-z_-]+) = \[", table, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
    assert {"torch", "cli"} < extras and {"demo", "test"} < targets
    model = re.search(r"^MODEL := (\S+)$", MAKEFILE, re.MULTILINE)
    assert model is not None
    for block in blocks(PAGES[name]):
        lines = block.text.splitlines() if block.language == "sh" else []
        for command in (c for line in lines if is_foreign(line) for c in commands(line)):
            words = [word for word in command[1:] if not word.startswith("-") and "=" not in word]
            if command[0] == "make":
                assert set(words) <= targets, f"{block.place}: make {words}"
            elif command[0] == "pip":
                assert words.pop(0) == "install"
                for word in words:
                    named = re.fullmatch(r"(?:\.|pyccmem)(?:\[([a-z_,-]+)\])?", word)
                    assert named or word == model[1], f"{block.place}: {word}"
                    if named and named[1]:
                        assert set(named[1].split(",")) <= extras, f"{block.place}: {word}"


@pytest.mark.parametrize("name", PAGES)
def test_outputs_are_of_commands_of_ours(name: str) -> None:
    """`make docs-outputs` can make them anew."""
    for block in blocks(PAGES[name]):
        if block.language == "console":
            assert block.text.startswith("$ pyccmem "), block.place
            assert block.text.count("\n") > 1, f"{block.place}: no output"


# ---- controls ----------------------------------------------------------------------------------

BROKEN = {
    "a name that is never imported": ("python", "os.getcwd()", "NameError"),
    "a wrong output": ("python", "print(1 + 1)      # 3", "prints '2', not '3'"),
    "a command that fails": ("sh", "pyccmem inspect nothing.safetensors", "nothing.safetensors"),
    "a failure before the last line": ("sh", "false\ntrue", "non-zero exit status"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_block_is_noticed(what: str, tmp_path: Path, monkeypatch) -> None:
    language, text, words = BROKEN[what]
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n```{language}\n{text}\n```\n")
    script = (
        "import pathlib\n"
        "import docs_support\n"
        f"docs_support.ROOT = pathlib.Path({str(tmp_path)!r})\n"
        f"docs_support.run_page(pathlib.Path({str(page)!r}))\n"
    )
    folder = tmp_path / "scratch"
    folder.mkdir()
    docs_support.prepare(folder)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=support.child_environment(**docs_support.environment(folder)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0 and words in done.stderr, done.stderr


@pytest.mark.parametrize(
    "text, words",
    [
        ("```\nx\n```\n", "no language"),
        ("```bash\nx\n```\n", "'bash'"),
        ("Text.\n\n    pyccmem info\n", "indented"),
        ("```python\nx = 1\n", "never ends"),
    ],
)
def test_a_block_that_says_nothing_is_refused(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs_support, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=words):
        blocks(tmp_path / "page.md")


def test_a_block_left_out_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_support, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "Takes an hour, so it is not run\nby the tests:\n\n```python\n1 / 0\n```\n\n"
        "Next.\n\n```python\n1\n```\n"
    )
    assert [block.left_out for block in blocks(page)] == [True, False]
    assert [block.line for block in blocks(page)] == [5, 11]


def test_comments_behind_prints() -> None:
    assert says("[2 1 1]: page 0 written again", "[2 1 1]")
    assert says("Page 1 of buffer 'kv' ...", "Page 1 of buffer 'kv' (bytes 1 to 2)")
    assert says("kv 1", "kv  1")
    assert not says("[2 1 1]: page 0", "[2 1]")
    assert not says("Page 2 ...", "Page 1 of")
    assert not says("3", "2")


def test_outputs_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_support, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", support.child_environment()["PYTHONPATH"])
    page = tmp_path / "page.md"
    old = (
        "Its version, printed on an old machine:\n\n```console\n$ pyccmem --version\nold\nold\n"
        "```\n\n```sh\npyccmem --help\n```\n\n```console\n$ pyccmem keygen k | cut -c 1-3\nx\n```\n"
    )
    page.write_text(old)
    assert docs_outputs.renew(page, "this one") == 2
    new = old.replace("an old machine", "this one").replace("\nx\n", "\nk\n")
    assert page.read_text() == new.replace("old\nold", f"pyccmem {pyccmem.__version__}")
    page.write_text("```console\n$ pyccmem inspect nothing\nx\n```\n")
    with pytest.raises(RuntimeError, match="status 2"):
        docs_outputs.renew(page, "this one")
    assert "x" in page.read_text(), "what was there stays"
