# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the whole suite. It is valid under any PYCCMEM_TIER and any thread count."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import native_build
import pytest
import support
from turns import Turns

import pyccmem

STARTED = time.monotonic()
FOLDER = pytest.StashKey[str]()
TURNS = pytest.StashKey[Turns]()

try:
    from hypothesis import settings

    settings.register_profile("pyccmem", deadline=None, database=None, print_blob=True)
    settings.load_profile("pyccmem")
except ImportError:
    pass


#: Files of tests that want the processors for themselves: what they prove hangs on threads that
#: meet, on signals that come at random moments, or on what the whole machine's memory does.
ALONE = {
    "test_interrupts.py",
    "test_mapping_limits.py",
    "test_mapping_threads.py",
    "test_memory_overhead.py",
    "test_servers.py",
    "test_threads.py",
}


#: Folders of tests whose outcome can depend on the tier; `make check-tiers` runs them once for each
#: tier. The other folders check what all tiers share, or call every tier themselves.
TIER_FOLDERS = {"cache", "core", "crypto", "memory", "product", "search", "store"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-for",
        metavar="SECONDS",
        type=float,
        default=float("inf"),
        help="skip long forms (marked full) that would begin later than this",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that run alone or depend on the tier, and puts long forms behind all others.

    Refuses an id with an address in it: it differs from process to process, and pytest-xdist could
    not tell which test it is."""
    for item in items:
        if re.search(r"0x[0-9a-f]{9}", item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} has an address in its id; name it by ids=.")
        if item.path.name in ALONE:
            item.add_marker("alone")
        if item.path.parent.name in TIER_FOLDERS:
            item.add_marker("tier")
    items.sort(key=lambda item: item.get_closest_marker("full") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = item.config.getoption("--full-for")
    if item.get_closest_marker("full") and time.monotonic() - STARTED > limit:
        pytest.skip(f"a long form, and more than {limit:.0f} seconds have passed")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist; all are told of one folder
        config.stash[TURNS] = Turns(Path(config.workerinput["turns"]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["turns"] = str(node.config.stash.setdefault(FOLDER, tempfile.mkdtemp()))


def pytest_unconfigure(config: pytest.Config) -> None:
    if FOLDER in config.stash:
        shutil.rmtree(config.stash[FOLDER], ignore_errors=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        yield
        return
    with turns.turn(alone=item.get_closest_marker("alone") is not None):
        yield


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
def native_objects(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, Path]:
    """The object files of all of csrc/, by source: the module itself has no names of functions.
    The first worker of pytest-xdist that wants them compiles them for all."""
    sources = native_build.sources()
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "native_objects"
    folder.mkdir(exist_ok=True)
    done = folder / "done"
    with open(folder / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            native_build.compile_objects(sources, folder)
            done.touch()
    return {source: folder / native_build.object_name(source) for source in sources}


@pytest.fixture(scope="session")
def native_units(
    native_objects: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """The doors of native/units.c to what the module does not export."""
    return native_build.units(native_objects.values(), tmp_path_factory.mktemp("units"))


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
    compiler = support.c_compiler("the stand-in random generator")
    directory = tmp_path_factory.mktemp("fixed_random")
    source, library = directory / "fixed_random.c", directory / "fixed_random.so"
    source.write_text(FIXED_RANDOM)
    done = subprocess.run(
        [*compiler, "-shared", "-fPIC", "-o", str(library), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    preload = os.environ.get("LD_PRELOAD", "")
    return support.child_environment(LD_PRELOAD=f"{preload} {library}".strip())
