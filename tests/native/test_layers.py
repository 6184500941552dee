# SPDX-License-Identifier: Apache-2.0
"""The order of csrc/'s folders: a file includes and calls only what lies in its own folder or in
one before it, and no two files of a folder call each other in a circle."""

from __future__ import annotations

import graphlib
import re
import subprocess
from pathlib import Path

import native_build
import pytest

#: Each may use those before it. A header of csrc/ itself is for all; /*: every other folder there.
ORDER = [
    *("platform", "memory", "simd"),
    *(
        "crypto",
        "crypto/aes",
        "crypto/gf128",
        "crypto/mac",
        "crypto/xts",
        "crypto/aegis",
        "crypto/*",
    ),
    *("quant", "kernels", "tiers", "pages", "store", "product", "search", "mapping", "cache"),
    *("selftest", "start", "tools", "api"),
]


def layer(path: str) -> int:
    folder = path.rpartition("/")[0]
    if not folder:
        return -1
    return ORDER.index(folder if folder in ORDER else folder.rpartition("/")[0] + "/*")


def includes(files: dict[str, str]) -> set[tuple[str, str]]:
    """Who includes whom, of files' texts by their paths in csrc/."""
    pattern = re.compile(r'^#\s*include\s+"(.+?)"', re.MULTILINE)
    named = {(path, name) for path, text in files.items() for name in pattern.findall(text)}
    assert all(name in files for _, name in named), "an include outside csrc/"
    return named


def calls(objects: dict[str, Path]) -> set[tuple[str, str]]:
    """Who refers to whose functions and data, of object files by their sources' paths."""
    defined: dict[str, str] = {}
    wanted: set[tuple[str, str]] = set()
    for path, made in objects.items():
        done = subprocess.run(["nm", str(made)], capture_output=True, text=True, check=True)
        for kind, name in re.findall(r"^.{16} (\w) (\w+)$", done.stdout, re.MULTILINE):
            if kind == "U":
                wanted.add((path, name))
            elif kind.isupper():
                defined[name] = path
    return {(path, defined[name]) for path, name in wanted if name in defined}


def faults(uses: set[tuple[str, str]]) -> list[str]:
    """What is wrong with these: edges that go up, or one circle."""
    found = [f"{a} uses {b}" for a, b in sorted(uses) if layer(b) > layer(a)]
    graph: dict[str, set[str]] = {}
    for user, used in uses:
        graph.setdefault(user, set()).add(used)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("a circle: " + " > ".join(error.args[1][::-1]))
    return found


def texts() -> dict[str, str]:
    files = [*native_build.CSRC.rglob("*.[ch]")]
    return {
        path.relative_to(native_build.CSRC).as_posix(): path.read_text(encoding="utf-8")
        for path in files
    }


@pytest.fixture(scope="module")
def by_path(native_objects: dict[Path, Path]) -> dict[str, Path]:
    return {
        path.relative_to(native_build.CSRC).as_posix(): made
        for path, made in native_objects.items()
    }


def test_includes_go_down() -> None:
    assert not faults(includes(texts()))


def test_calls_go_down(by_path: dict[str, Path]) -> None:
    found = calls(by_path)
    assert len(found) > 200
    assert not faults(found)


def test_an_include_that_goes_up_or_round_is_found() -> None:
    """The control."""
    files = texts()
    files["platform/cpu.h"] += '#include "pages/page.h"\n'
    assert "platform/cpu.h uses pages/page.h" in faults(includes(files))
    files = texts()
    files["crypto/aes/aes.h"] += '#include "crypto/aes/keywrap.h"\n'
    assert [text.partition(":")[0] for text in faults(includes(files))] == ["a circle"]


def test_a_call_that_goes_up_or_round_is_found(by_path: dict[str, Path], tmp_path: Path) -> None:
    """The control."""
    seeded = {
        "platform/fork.c": "void up(void);\nvoid up(void) { ccmem_store_free(0); }\n",
        "crypto/aes/aes.c": "void keywrap_expand(void);\nvoid round(void) { keywrap_expand(); }\n",
    }
    expected = ("platform/fork.c uses store/", "a circle: ")
    for (path, text), fault in zip(seeded.items(), expected, strict=True):
        source = tmp_path / Path(path).name
        source.write_text((native_build.CSRC / path).read_text(encoding="utf-8") + text)
        made = native_build.compile_objects([source], tmp_path, "-fno-builtin")[source]
        found = faults(calls({**by_path, path: made}))
        assert any(line.startswith(fault) for line in found), found
