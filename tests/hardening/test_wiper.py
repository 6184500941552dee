# SPDX-License-Identifier: Apache-2.0
"""The preloaded library: freed and moved blocks are overwritten, live ones are not, and what nobody
used is not touched; the same script without the library is the control."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import c_compiler, child_environment, linux_only, not_sanitized

from pyccmem.hardening import library
from pyccmem.hardening.launch import environment
from pyccmem.hardening.settings import Settings

pytestmark = [linux_only, not_sanitized]

#: Looks at blocks through process_vm_readv(2), by the C library of this interpreter.
BLOCKS = """
import ctypes, json, os, sys
from ctypes import c_size_t as size, c_void_p as pointer
libc = ctypes.CDLL(None, use_errno=True)
for name, result, arguments in (
    ("malloc", pointer, [size]), ("calloc", pointer, [size, size]), ("free", None, [pointer]),
    ("realloc", pointer, [pointer, size]), ("aligned_alloc", pointer, [size, size]),
    ("reallocarray", pointer, [pointer, size, size]), ("malloc_usable_size", size, [pointer]),
):
    function = getattr(libc, name)
    function.restype, function.argtypes = result, arguments
class Span(ctypes.Structure):
    _fields_ = [("base", pointer), ("length", size)]
room = ctypes.create_string_buffer(64 << 20)
mark = os.urandom(8)
filling = mark * (len(room) // 8)
def fill(p, n):
    ctypes.memmove(p, filling, n)
def left(p, n):
    a, b = Span(ctypes.addressof(room), n), Span(p, n)
    got = libc.process_vm_readv(os.getpid(), ctypes.byref(a), 1, ctypes.byref(b), 1, 0)
    return ctypes.string_at(room, max(got, 0)).count(mark) * 8
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""

FREED = """
libc.mallopt(-3, 1 << 30)    # M_MMAP_THRESHOLD: large blocks come from the heap
libc.mallopt(-1, 1 << 30)    # M_TRIM_THRESHOLD: and stay there
kept = {}
for n in (24, 40, 72, 136, 520, 1000, 1032, 1040, 5000, 70000, 3 << 20, 5 << 20, 20 << 20):
    whole = n // 8 * 8
    for how, take in (("malloc", lambda: libc.malloc(n)),
                      ("aligned", lambda: libc.aligned_alloc(64, n))):
        p, fence = take(), libc.malloc(24)
        fill(p, whole)
        libc.free(p)
        kept[f"{how} {n}"] = left(p, whole)
        libc.free(fence)
print(json.dumps(kept))
"""

MOVED = """
kept = {}
for n in (24, 200, 1000, 3000, 60000):
    for how, new in (("more", 4 * n), ("much more", 1 << 22), ("less", n // 2 // 8 * 8)):
        p, fence = libc.malloc(n), libc.malloc(24)
        whole = n // 8 * 8
        fill(p, whole)
        q = libc.realloc(p, new)
        stays = min(new, whole) // 8 * 8
        assert ctypes.string_at(q, stays) == filling[:stays], (n, how)
        if q != p:
            kept[f"{how} {n}"] = left(p, whole)
        else:
            kept[f"{how} {n}"] = left(p + stays, max(whole - stays, 0))
        libc.free(q); libc.free(fence)
p = libc.malloc(600)
fill(p, 600)
q = libc.reallocarray(p, 100, 50)
assert ctypes.string_at(q, 600) == filling[:600]
kept["reallocarray"] = left(p, 600) if p != q else 0
assert libc.reallocarray(q, 1 << 40, 1 << 40) is None and ctypes.get_errno() == 12
assert libc.realloc(q, 1 << 60) is None and ctypes.string_at(q, 600) == filling[:600]
print(json.dumps(kept))
"""

RANDOM = """
import random
random.seed(5)
live = {}
def value(p, n):
    return bytes((p >> 4 & 255, n & 255)) * (n // 2)
for step in range(60000):
    if live and random.random() < 0.55:
        p = random.choice(list(live)) if len(live) < 50 else next(iter(live))
        n, expected = live.pop(p)
        assert ctypes.string_at(p, len(expected)) == expected, step
        if random.random() < 0.4:
            new = random.choice((0, 1, 8, 24, 30, 100, 1000, 1100, 9000, 200000))
            if new == 0:
                libc.free(p)
                continue
            q = libc.realloc(p, new)
            same = expected[:new]
            assert ctypes.string_at(q, len(same)) == same, step
            live[q] = (new, same)
        else:
            libc.free(p)
    else:
        n = int(2 ** random.uniform(0, 17))
        p = libc.calloc(n, 1) if random.random() < 0.3 else libc.malloc(n)
        made = value(p, n)
        ctypes.memmove(p, made, len(made))
        live[p] = (n, made)
print(json.dumps({"ends": 1}))
"""

UNUSED = """
before = resident()
p = libc.malloc(1 << 30)
libc.free(p)
q = libc.calloc(1 << 30, 1)
used = resident() - before
libc.free(q)
print(json.dumps({"used": used, "after": resident() - before}))
"""


def answer(
    script: str, *, wiped: bool, behind: Path | None = None, **variables: str
) -> dict[str, int]:
    """What a script prints, with the library or without, before the allocator `behind`."""
    given = child_environment(LD_PRELOAD=None if behind is None else str(behind))
    made = environment(Settings(debuggable=True), given) if wiped else given
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS + script],
        env={**made, "PYTHONMALLOC": "pymalloc", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_the_library_is_there() -> None:
    path = library.path()
    assert path is not None and path.is_file()


def test_freed_blocks_keep_nothing() -> None:
    assert not any(answer(FREED, wiped=True).values())
    assert sum(map(bool, answer(FREED, wiped=False).values())) > 15


def test_moved_blocks_keep_nothing_and_lose_nothing() -> None:
    assert not any(answer(MOVED, wiped=True).values())
    assert any(answer(MOVED, wiped=False).values())


def test_live_blocks_keep_what_lies_in_them() -> None:
    assert answer(RANDOM, wiped=True) == {"ends": 1}


def test_memory_that_nobody_used_is_not_touched() -> None:
    assert answer(UNUSED, wiped=True)["used"] < 1 << 24


#: An allocator that stands before glibc's, with a head of its own before each block.
ALLOCATOR = """
#include <errno.h>
#include <stddef.h>
#include <string.h>
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);
struct head { size_t size, before; };
static struct head *of(void *p) { return (struct head *)p - 1; }
int posix_memalign(void **out, size_t alignment, size_t n) {
    size_t before = alignment < 16 ? 16 : alignment;
    char *p = n > (size_t)1 << 50 ? NULL : __libc_memalign(before, n + before);
    if (!p) return ENOMEM;
    *out = p + before;
    *of(*out) = (struct head){n, before};
    return 0;
}
void *aligned_alloc(size_t alignment, size_t n) {
    void *p;
    return posix_memalign(&p, alignment, n) ? NULL : p;
}
void *malloc(size_t n) { return aligned_alloc(16, n); }
void *calloc(size_t count, size_t n) {
    void *p = malloc(count * n);
    return p ? memset(p, 0, count * n) : p;
}
void free(void *p) { if (p) __libc_free((char *)p - of(p)->before); }
void *realloc(void *p, size_t n) {
    void *q = malloc(n);
    if (q && p) { memcpy(q, p, n < of(p)->size ? n : of(p)->size); free(p); }
    return q;
}
#ifdef OPERATORS /* of C++, by their names in the Itanium ABI */
void *_Znwm(size_t n) { return malloc(n); }
void _ZdlPvm(void *p, size_t n) { (void)n; if (p) __libc_free((char *)p - of(p)->before); }
#endif
#ifdef SIZES
size_t malloc_usable_size(void *p) { return p ? of(p)->size : 0; }
#endif
"""

OWNER = """
from pyccmem.hardening import parts
from pyccmem.hardening.allocator import owner, wiper
states = {part.name: part.active for part in parts()}
print(json.dumps({"other": owner().name.startswith("other"), "wiper": bool(wiper()),
                  "freed": states["freed-memory"], "small": states["small-blocks"]}))
"""


def other_allocator(folder: Path, *options: str) -> Path:
    """A library with an allocator."""
    compiler = c_compiler("an allocator")
    source, made = folder / "other.c", folder / "other.so"
    source.write_text(ALLOCATOR)
    subprocess.run(
        [*compiler, "-O1", "-fno-builtin", *options, "-fPIC", "-shared", "-o", made, source],
        check=True,
    )
    return made


@pytest.mark.parametrize("sizes", [True, False])
def test_another_allocator(sizes: bool, tmp_path: Path) -> None:
    """It is asked for sizes, and left alone where it does not tell them."""
    made = other_allocator(tmp_path, *(["-DSIZES"] if sizes else []))
    found = answer(OWNER, wiped=True, behind=made)
    assert found == {"other": 1, "wiper": sizes, "freed": sizes, "small": sizes}
    assert answer(RANDOM, wiped=True, behind=made) == {"ends": 1}
    if sizes:
        assert not any(answer(MOVED, wiped=True, behind=made).values())


def test_an_allocator_with_operators_of_its_own(tmp_path: Path) -> None:
    """What C++ deletes does not come by free() then, and is not called overwritten."""
    made = other_allocator(tmp_path, "-DSIZES", "-DOPERATORS")
    found = answer(OWNER, wiped=True, behind=made)
    assert found == {"other": 1, "wiper": 1, "freed": 0, "small": 0}
    assert answer(RANDOM, wiped=True, behind=made) == {"ends": 1}


PARTS = """
import numpy
from pyccmem.hardening import parts
from pyccmem.hardening.allocator import owner
found = {part.name: part.active for part in parts()}
told = {part.name: part.detail for part in parts()}["freed-memory"]
print(json.dumps({"owner": owner().name, "told": told, **found}))
"""


@pytest.mark.parametrize("name", ["jemalloc", "mimalloc"])
def test_allocators_that_people_preload(name: str) -> None:
    """All that comes by free() is overwritten. Both have operators of C++, of which it is said that
    they go past it."""
    file = ctypes.util.find_library(name)
    if file is None:
        pytest.skip(f"needs {name}")
    behind = Path(file)
    alone = answer(FREED, wiped=False, behind=behind)
    assert sum(map(bool, alone.values())) > 10
    assert not any(answer(FREED, wiped=True, behind=behind).values())
    assert not any(answer(MOVED, wiped=True, behind=behind).values())
    assert answer(RANDOM, wiped=True, behind=behind) == {"ends": 1}
    found = answer(PARTS, wiped=True, behind=behind, PYTHONMALLOC="malloc")
    assert found["owner"] == name
    assert found["python-objects"] and found["numpy-memory"]
    assert not found["freed-memory"] and "operator delete" in str(found["told"])


PROGRAM = """
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
static void *work(void *start) {
    unsigned state = (unsigned)(size_t)start * 2654435761u + 1;
    char *kept[64] = {0};
    for (int i = 0; i < 200000; i++) {
        state = state * 1664525u + 1013904223u;
        unsigned at = state >> 26, size = (state >> 8) % 3000 + 2;
        if (kept[at] && kept[at][0] != kept[at][1]) abort();
        if (state & 64) { free(kept[at]); kept[at] = malloc(size); }
        else kept[at] = realloc(kept[at], size);
        memset(kept[at], (char)state, size < 200 ? size : 200);
    }
    for (int i = 0; i < 64; i++) free(kept[i]);
    return NULL;
}
int main(void) {
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) pthread_create(&threads[i], NULL, work, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    return 23;
}
"""


def test_threads_of_a_program_in_c(tmp_path: Path) -> None:
    compiler = c_compiler("a program with threads")
    source, made = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    subprocess.run([*compiler, "-O1", str(source), "-o", str(made), "-pthread"], check=True)
    done = subprocess.run(
        [str(made)], env=environment(Settings(), child_environment()), timeout=120, check=False
    )
    assert done.returncode == 23


@pytest.mark.skipif(shutil.which("ldd") is None, reason="needs ldd")
def test_the_library_needs_the_c_library_alone() -> None:
    """It is loaded into every program, also one that is not Python's."""
    told = subprocess.run(
        ["ldd", str(library.path())], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    names = [line.split()[0] for line in told.splitlines() if "=>" in line]
    assert all(name.startswith(("libc.", "libdl.", "libpthread.")) for name in names), told
