# SPDX-License-Identifier: Apache-2.0
"""The table of int8 products for AVX-VNNI, on processors that have its instruction in AVX-512's
encoding alone: the self-test of the library finds it right, and one that saturates wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import native_build
import pytest

SOURCE = Path(__file__).with_name("int8_vnni.c")


def test_the_table_of_avx_vnni(native_objects: dict[Path, Path], tmp_path: Path) -> None:
    own = native_build.compile_objects([SOURCE], tmp_path)
    made = tmp_path / "int8_vnni"
    files = [str(path) for path in (*native_objects.values(), *own.values())]
    subprocess.run(
        [*native_build.compiler(), "-pthread", *files, "-o", str(made), "-lm"], check=True
    )
    done = subprocess.run([str(made)], capture_output=True, text=True, check=True, timeout=60)
    if done.stdout == "not on this processor\n":
        pytest.skip("needs AVX512-VNNI")
    assert done.stdout.splitlines() == ["not noticed", "noticed"]
