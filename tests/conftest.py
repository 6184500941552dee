# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the whole suite. It is valid under any PYCCMEM_TIER and any thread count."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import native_build
import support

import pyccmem

try:
    from hypothesis import settings

    settings.register_profile("pyccmem", deadline=None, database=None, print_blob=True)
    settings.load_profile("pyccmem")
except ImportError:
    pass


def pytest_report_header() -> str:
    return f"pyccmem: tier {pyccmem.cpu_info()['tier']}, usable {', '.join(support.TIER_NAMES)}"


@pytest.fixture
def key() -> Iterator[pyccmem.Key]:
    """A root key with known bytes, closed after the test."""
    with pyccmem.Key.from_bytes(support.KEY_BYTES) as root:
        yield root


@pytest.fixture(params=support.TIERS, ids=support.TIER_NAMES)
def tier(request: pytest.FixtureRequest) -> int:
    """Every tier this processor can run, as ccmem_tier."""
    return request.param


@pytest.fixture(params=support.CIPHERS)
def cipher(request: pytest.FixtureRequest) -> str:
    """Every cipher suite of a buffer."""
    return request.param


@pytest.fixture(params=support.PAGE_SIZES)
def page_size(request: pytest.FixtureRequest) -> int:
    """Every page size."""
    return request.param


@pytest.fixture(scope="session")
def native_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """The object files of all of csrc/, by source: the module itself has no names of functions."""
    sources = sorted(native_build.CSRC.glob("*.c"))
    return native_build.compile_objects(sources, tmp_path_factory.mktemp("native"))


FIXED_RANDOM = r"""
#include <stddef.h>
#include <string.h>
#include <sys/types.h>
/* Every request is answered with 0x37: getrandom(2) and getentropy(3) as the C library has them. */
ssize_t getrandom(void *out, size_t n, unsigned flags)
{
    (void)flags;
    memset(out, 0x37, n);
    return (ssize_t)n;
}
int getentropy(void *out, size_t n) { memset(out, 0x37, n); return 0; }
"""


@pytest.fixture(scope="session")
def fixed_random(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment for a child in which every store id is 16 x 0x37, through a preloaded
    library that stands in for the system's random generator."""
    compiler = shutil.which(os.environ.get("CC", "cc").split()[0]) or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stand-in random generator")
    directory = tmp_path_factory.mktemp("fixed_random")
    source, library = directory / "fixed_random.c", directory / "fixed_random.so"
    source.write_text(FIXED_RANDOM)
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    preload = os.environ.get("LD_PRELOAD", "")
    return support.child_environment(LD_PRELOAD=f"{preload} {library}".strip())
