# SPDX-License-Identifier: Apache-2.0
"""How the native module is compiled, for tests that compile some of it: the compiler and the flags,
as the proof of constant time (proofs/ct/run.py) finds them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
#: `make mutants` names a copy, so that what a test compiles itself has the change in it, too.
CSRC = Path(os.environ.get("PYCCMEM_CSRC", ROOT / "csrc"))
#: The library that `pyccmem run` preloads, which is no part of the native module.
_PACKAGES = CSRC.parent if "PYCCMEM_CSRC" in os.environ else ROOT / "src"
WIPER = _PACKAGES / "pyccmem/hardening/wiper.c"
UNITS = TESTS / "native" / "units.c"

_spec = importlib.util.spec_from_file_location("ct_run", TESTS / "proofs" / "ct" / "run.py")
_run = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _run
_spec.loader.exec_module(_run)

compiler = _run.compiler
flags = _run.flags


def object_name(source: Path) -> str:
    """The name of a source's object file, another for each of CSRC."""
    return str(_run.object_name(source, CSRC))


def sources() -> list[Path]:
    """Every source of the native module, in the order in which it is built."""
    return sorted(CSRC.rglob("*.c"))


def compile_objects(files: Iterable[Path], folder: Path, *more: str) -> dict[Path, Path]:
    """Compiles `files` into `folder` with the module's flags, but at -O1, which takes a third of
    the time, and returns the object files."""
    usual = shlex.split(sysconfig.get_config_var("CFLAGS") or "")
    options = [*usual, *flags(), "-g0", "-O1", *more]

    def compiled(source: Path) -> Path:
        made = folder / object_name(source)
        command = [*compiler(), *options, f"-I{CSRC}", "-c", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return made

    files = list(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(files, pool.map(compiled, files), strict=True))


def units(objects: Iterable[Path], folder: Path) -> ctypes.CDLL:
    """The library of units_file(), loaded. A process has room for some twenty: each takes of the
    static TLS that is set aside for libraries which come late."""
    return ctypes.CDLL(str(units_file(objects, folder)))


def units_file(objects: Iterable[Path], folder: Path) -> Path:
    """A library of its own, in `folder`, of the object files of csrc/ and native/units.c, which
    opens functions that the module does not export."""
    own = compile_objects([UNITS], folder)
    library = folder / "libunits.so"
    files = map(str, (*objects, *own.values()))
    command = [*compiler(), "-shared", "-pthread", *files, "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
