# SPDX-License-Identifier: Apache-2.0
"""Makes system calls and allocations of the native module fail on request: the Python side of
fault_injection.c, whose head shows how it is used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import support

from pyccmem import _native

SOURCE = Path(__file__).with_name("fault_injection.c")

#: Calls that give something back. One that fails leaves what it was to free, whatever the caller
#: does, so whoever counts what is left over must leave them out.
RELEASING = ("munmap", "close")


def build(directory: Path) -> Path:
    """Compiles the library into `directory`; skips the test where there is no C compiler."""
    compiler = support.c_compiler("the library that makes calls fail")
    library = directory / "libfault_injection.so"  # no name of a Python module
    command = [*compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [*command, "-pthread", "-o", str(library), str(SOURCE), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return library


def environment(library: Path, **changes: str | None) -> dict[str, str]:
    """The environment of a child in which calls can be made to fail, of the pyccmem under test."""
    preload = os.environ.get("LD_PRELOAD", "")
    changes.setdefault("PYTHONPATH", None)
    tests, package = str(SOURCE.parent), str(Path(_native.__file__).resolve().parent.parent)
    found = support.child_environment(LD_PRELOAD=f"{preload} {library}".strip(), **changes)
    path = (tests, package, found.get("PYTHONPATH"))
    found["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return found


class Injector:
    """In a process that was started with environment(): counts calls, and has them fail."""

    def __init__(self) -> None:
        self._library = library = ctypes.CDLL(None)
        library.fault_injection_name.restype = ctypes.c_char_p
        library.fault_injection_seen.restype = ctypes.c_long
        library.fault_injection_blocks.restype = ctypes.c_long
        library.fault_injection_mapped.restype = ctypes.c_long
        library.fault_injection_arm.argtypes = (
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
        )
        path = os.fsencode(_native.__file__)
        assert library.fault_injection_module(path), f"{path!r} is not loaded by this name"
        self.kinds: list[str] = []
        while name := library.fault_injection_name(len(self.kinds)):
            self.kinds.append(name.decode())

    @property
    def seen(self) -> int:
        """Calls since the last counting() or failing() began."""
        return int(self._library.fault_injection_seen())

    @property
    def failed(self) -> str | None:
        """The name of the call that failed last, since then."""
        kind = int(self._library.fault_injection_failed())
        return self.kinds[kind] if kind >= 0 else None

    def held(self) -> tuple[int, int]:
        """What the native module has now, less what it had before the injector was made: blocks of
        the allocator, and bytes of address space that it has mapped itself."""
        return (
            int(self._library.fault_injection_blocks()),
            int(self._library.fault_injection_mapped()),
        )

    def counting(
        self, kinds: Iterable[str] | None = None, without: Iterable[str] = ()
    ) -> contextlib.AbstractContextManager[Injector]:
        """Counts calls of `kinds` (None: all) but those `without`; none fails."""
        return self.failing(0, kinds=kinds, without=without)

    @contextlib.contextmanager
    def failing(
        self,
        nth: int,
        *,
        later: bool = False,
        kinds: Iterable[str] | None = None,
        without: Iterable[str] = (),
        error: int = 0,
        partial: bool = False,
        lie: bool = False,
    ) -> Iterator[Injector]:
        """Has the `nth` call fail, from 1 on, and with `later` all that follow; with `error`, or
        an error that fits the call. With `lie` an ioctl(), mprotect(), mremap() or syscall()
        that is not made reports success: the control of a test that looks at what was done."""
        chosen = set(self.kinds if kinds is None else kinds) - set(without)
        mask = sum(1 << number for number, name in enumerate(self.kinds) if name in chosen)
        self._library.fault_injection_arm(nth, later, mask, error, partial, lie)
        try:
            yield self
        finally:
            self._library.fault_injection_disarm()
