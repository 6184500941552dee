# SPDX-License-Identifier: Apache-2.0
"""No kernel has a larger frame than what is overwritten behind it, on tiers that this processor
cannot run either: the compiler tells how much stack each function takes."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import native_build
import pytest
from support import not_sanitized

pytestmark = not_sanitized

#: By the beginnings of paths, of which the longest counts: what is left of the 6 KiB of
#: burn_stack_of_kernels() and the 3, 4 and 8 KiB of page_gcm.c, when functions between kernel and
#: caller have their frames.
LIMITS = {
    "kernels/": 5632,
    "crypto/aes_gcm/": 2560,
    "crypto/sm4_gcm/": 2560,
    "crypto/sm4_gcm/vaes256": 3584,
    "crypto/sm4_gcm/gfni256": 3584,
    "crypto/sm4_gcm/vaes512": 7168,
    "crypto/sm4_gcm/gfni512": 7168,
}

#: Compiled in a second or two; others are long forms.
FAST = {"kernels/gemv_avx2.c", "crypto/aes_gcm/portable.c"}


def frames(source: Path, folder: Path) -> dict[str, int]:
    """Bytes of each function's frame, compiled as in the module."""
    made = folder / "kernel.o"
    options = [*native_build.flags(), "-g0", "-fstack-usage", f"-I{native_build.CSRC}"]
    command = [*native_build.compiler(), *options, "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "-fstack-usage" in done.stderr:
        pytest.skip("needs a compiler that tells how much stack functions take")
    assert done.returncode == 0, done.stderr
    lines = made.with_suffix(".su").read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r".*:([\w.]+)\t(\d+)\t.*", line) for line in lines)
    return {match[1]: int(match[2]) for match in found if match}


def too_large(found: dict[str, int], limit: int) -> dict[str, int]:
    return {name: n for name, n in found.items() if n > limit}


def limit_of(name: str) -> int:
    return LIMITS[max((begin for begin in LIMITS if name.startswith(begin)), key=len)]


def sources() -> list[str]:
    return [
        path.relative_to(native_build.CSRC).as_posix()
        for folder in LIMITS
        if folder.endswith("/")
        for path in sorted((native_build.CSRC / folder).glob("*.c"))
    ]


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.full) for name in sources()],
)
def test_kernels(name: str, tmp_path: Path) -> None:
    found = frames(native_build.CSRC / name, tmp_path)
    assert found or platform.machine() != "x86_64"
    assert not too_large(found, limit_of(name))


def test_a_large_frame_is_found(tmp_path: Path) -> None:
    source = tmp_path / "large.c"
    source.write_text(
        "void use(char *p);\n"
        "void large(void) { char kept[6000]; use(kept); }\n"
        "void small(void) { char kept[60]; use(kept); }\n"
    )
    found = frames(source, tmp_path)
    assert set(found) == {"large", "small"}
    assert list(too_large(found, LIMITS["kernels/"])) == ["large"]
