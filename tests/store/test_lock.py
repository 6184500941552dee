# SPDX-License-Identifier: Apache-2.0
"""The lock of a page without pages: lock.c compiled alone, and twins of it that must fail."""

from __future__ import annotations

import subprocess
from pathlib import Path

import native_build
import pytest
from support import not_sanitized

HERE = Path(__file__).resolve().parent

#: What a twin does without, where, and what the test must say of it then.
TWINS = {
    "the second look": (
        "lock.h",
        "    return __builtin_expect(__atomic_load_n(word, __ATOMIC_RELAXED) == version, 1);",
        "    return (void)word, (void)version, 1;",
        "torn",
    ),
    "the lock": (
        "lock.c",
        "__atomic_compare_exchange_n(word, &v[i], v[i] | LOCK, 0,",
        "__atomic_compare_exchange_n(word, &v[i], v[i], 0,",
        "the sum of versions",
    ),
    "asking whether a writer is there": (
        "lock.c",
        "return (uint32_t)*slot == 0 && (__atomic_load_n",
        "return (__atomic_load_n",
        "locks of writers taken for stale",
    ),
}


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """Compiles what lies in folder/store, or csrc/ if it is not there, and runs it."""
    lock = folder / "store" / "lock.c"
    subprocess.run(
        [
            *native_build.compiler(),
            *native_build.flags(),
            *(f"-I{folder}", f"-I{native_build.CSRC}"),
            *(str(HERE / "lock.c"), str(lock), "-pthread", "-o", str(folder / "lock")),
        ],
        check=True,
    )
    return subprocess.run(
        [str(folder / "lock")], capture_output=True, text=True, timeout=120, check=False
    )


def place(folder: Path, **changed: str) -> None:
    """Puts the lock's files there, one of them with another text."""
    (folder / "store").mkdir()
    for name in ("lock.c", "lock.h"):
        text = (native_build.CSRC / "store" / name).read_text(encoding="utf-8")
        (folder / "store" / name).write_text(changed.get(name.replace(".", "_"), text))


@not_sanitized
def test_readers_and_writers(tmp_path: Path) -> None:
    place(tmp_path)
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done


@not_sanitized
@pytest.mark.parametrize("without", TWINS)
def test_twins_are_caught(tmp_path: Path, without: str) -> None:
    name, old, new, told = TWINS[without]
    text = (native_build.CSRC / "store" / name).read_text(encoding="utf-8")
    assert text.count(old) == 1
    place(tmp_path, **{name.replace(".", "_"): text.replace(old, new)})
    for _ in range(20):  # until two threads meet
        done = run(tmp_path)
        if done.returncode:
            break
    assert done.returncode == 1 and told in done.stdout, done
