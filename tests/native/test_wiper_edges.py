# SPDX-License-Identifier: Apache-2.0
"""The preloaded library at the edges of its branches, compiled so that undefined behaviour traps:
it overwrites each byte of a block and none beside it, for all sizes, alignments and ways out,
before an allocator that checks this (wiper_behind.c) and before glibc. It cannot be preloaded under
AddressSanitizer, which has an allocator of its own. Broken twins of it are found out."""

from __future__ import annotations

import platform
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import native_build
import pytest
from support import c_compiler, linux_only, not_sanitized

HERE = Path(__file__).parent
FLAGS = [
    *("-std=gnu11", "-O2", "-g0", "-fno-builtin", "-D_GNU_SOURCE", "-Wno-missing-attributes"),
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
]

pytestmark = [
    linux_only,
    not_sanitized,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc"),
]


def driven(
    way: str, folder: Path, wiper: Path = native_build.WIPER, compiler: Sequence[str] = ()
) -> tuple[int, str]:
    """How the driver ends with that library in front: exit status, what it says."""
    compiler = compiler or c_compiler("the wiper")
    behind, made = folder / "libbehind.so", folder / "driver"
    more = []
    if way == "checked":
        shared = ["-std=gnu11", "-O2", "-fno-builtin", "-fPIC", "-shared"]
        subprocess.run([*compiler, *shared, HERE / "wiper_behind.c", "-o", behind], check=True)
        more = [behind]
    # What the program exports comes before all libraries, as if it were preloaded.
    sources = ["-Wl,--export-dynamic", HERE / "wiper_edges.c", wiper]
    subprocess.run([*compiler, *FLAGS, *sources, "-o", made, *more, "-ldl"], check=True)
    done = subprocess.run([made, way], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("way", ["checked", "glibc"])
def test_every_byte_and_none_beside_it(way: str, tmp_path: Path) -> None:
    assert driven(way, tmp_path) == (0, "")


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="needs musl-gcc")
def test_with_musl(tmp_path: Path) -> None:
    """The same for programs of another C library."""
    assert driven("checked", tmp_path, compiler=["musl-gcc"]) == (0, "")


OVERWRITES = "        memset(p, 0, n);\n    __asm__"


@pytest.mark.parametrize(
    ("way", "count", "status", "says"),
    [
        ("checked", "n - 1", 3, "something in it"),
        ("checked", "n + 1", 3, "behind a block"),
        ("glibc", "n - 1", 3, "something in it"),
        ("glibc", "n + 1", 3, "head was changed"),
        ("glibc", "1u << n", -signal.SIGILL, ""),
    ],
)
def test_a_broken_twin(way: str, count: str, status: int, says: str, tmp_path: Path) -> None:
    """A byte too few, a byte too many, a shift that is not defined."""
    text = native_build.WIPER.read_text(encoding="utf-8")
    assert text.count(OVERWRITES) == 1
    changed = text.replace(OVERWRITES, OVERWRITES.replace("n)", f"{count})"))
    (tmp_path / "twin.c").write_text(changed, encoding="utf-8")
    found, said = driven(way, tmp_path, tmp_path / "twin.c")
    assert found == status and says in said, said
