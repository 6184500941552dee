# SPDX-License-Identifier: Apache-2.0
"""The fences of docs/design/sequence-lock.md are where they are needed, in the machine code.

No test of behaviour misses one that is gone. On x86 most of them are no instructions; one is, the
sfence after stores around the caches, and without it they would be seen later by less time than
another processor needs for a whole read. So the code is read: that of x86 for stores around the
caches that are pending when a function ends, that of AArch64, which orders nothing by itself, for
the instructions that each step needs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import native_build
import pytest

# ---- x86: stores around the caches --------------------------------------------------------------

#: Whose code has such stores. Another file that gets some belongs here.
STREAMING = re.compile(
    r"crypto/(aegis|aegis256|aes_gcm|sm4_gcm|xts)/"
    r"(aesni|avx2|gfni128|gfni256|gfni512|vaes256|vaes512|vaes512_amd)\.c|memory/plain\.c"
)
STORE = re.compile(r"v?movnt(dq|dqu|i|q|pd|ps)\b")

on_x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads x86-64 code")


class Instruction(NamedTuple):
    at: int
    what: str
    symbol: str  # of its relocation: the function that it calls or names


class Function:
    """A function's instructions, from objdump's listing of a section of its own."""

    def __init__(self) -> None:
        self.code: list[Instruction] = []

    def leaves(self, leaking: set[str]) -> bool:
        """Whether a store around the caches may be pending where it ends: its own, or one of a
        function of `leaking` that it calls."""
        place = {step.at: i for i, step in enumerate(self.code)}
        todo, seen = [(0, False)], set()
        while todo:
            i, pending = todo.pop()
            if (i, pending) in seen or i >= len(self.code):
                continue
            seen.add((i, pending))
            step = self.code[i]
            name = step.what.split()[0]
            if STORE.match(name):
                pending = True
            elif name in ("sfence", "mfence"):
                pending = False
            elif name.startswith("call") and step.symbol in leaking:
                pending = True
            elif name.startswith("ret"):
                if pending:
                    return True
                continue
            elif name.startswith("j"):
                target = re.search(r"\b([0-9a-f]+) <", step.what)
                inside = target is not None and not step.symbol
                if inside:
                    todo.append((place[int(target[1], 16)], pending))
                elif pending or step.symbol in leaking:  # the end, as a call whose end is its own
                    return True
                if name in ("jmp", "jmpq"):
                    continue
            todo.append((i + 1, pending))
        return False


def functions(made: Path) -> tuple[dict[str, Function], set[str]]:
    """Those of an object file with a section for each, and the names of those that others reach: by
    their names, or through pointers."""

    def listing(*options: str) -> list[str]:
        command = ["objdump", *options, str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    found: dict[str, Function] = {}
    outside = set()
    current = Function()
    for line in listing("-d", "-r", "-w", "--no-show-raw-insn"):
        if header := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            current = found.setdefault(header[1], Function())
        elif step := re.match(r"\s+([0-9a-f]+):\t(?:bnd |notrack )?(\S.*?)\s*(?:\t(.*))?$", line):
            symbol = re.search(r"R_X86_64_\w+\s+(?:\.text\.)?([\w.]+)", step[3] or "")
            name = symbol[1] if symbol else ""
            current.code.append(Instruction(int(step[1], 16), step[2], name))
            if name and not step[2].startswith(("call", "j")):
                outside.add(name)
    for line in listing("-t"):
        if (row := line.split()) and re.match(r"[0-9a-f]{16} g", line):
            outside.add(row[-1])
    for line in listing("-r"):
        if symbol := re.search(r"R_X86_64_64\s+(?:\.text\.)?([\w.]+)", line):
            outside.add(symbol[1])
    return found, outside & set(found)


def compiled(sources: Iterable[Path], folder: Path, *more: str) -> list[Path]:
    """With a section for each function, and every branch to a place that can be read."""
    flags = ["-ffunction-sections", "-fno-reorder-blocks-and-partition", "-fno-jump-tables"]
    return list(native_build.compile_objects(sources, folder, *flags, *more).values())


def unfenced(objects: Iterable[Path]) -> tuple[set[str], int]:
    """The functions after whose return a store around the caches may be pending, of those that can
    be called from elsewhere; and how many functions have such stores at all."""
    bad, stores = set(), 0
    for made in objects:
        found, outside = functions(made)
        leaking: set[str] = set()
        while more := {n for n in found if n not in leaking and found[n].leaves(leaking)}:
            leaking |= more
        bad |= leaking & outside
        stores += sum(any(STORE.match(s.what) for s in f.code) for f in found.values())
    return bad, stores


def streaming() -> list[Path]:
    return [
        path
        for path in native_build.sources()
        if STREAMING.fullmatch(path.relative_to(native_build.CSRC).as_posix())
    ]


@on_x86
def test_no_store_around_the_caches_is_left_pending(tmp_path: Path) -> None:
    """Whoever calls a kernel publishes a version next, which must not be seen before the page."""
    bad, stores = unfenced(compiled(streaming(), tmp_path))
    assert not bad
    # Four kernels of XTS on each of four tiers, two or more of AEGIS on two tiers, and the wipe.
    assert stores >= 4 * 4 + 2 * 2 + 1


@on_x86
def test_no_other_file_stores_around_the_caches(native_objects: dict[Path, Path]) -> None:
    others = [made for source, made in native_objects.items() if source not in streaming()]
    assert len(others) > 40
    for made in others:
        code, _ = functions(made)
        assert not [n for n, f in code.items() for s in f.code if STORE.match(s.what)], made.name


#: Each fence after stores around the caches: its file, the text before it, and a file of kernels
#: that end with it.
SFENCES = [
    (
        "crypto/aegis/template.h",
        "(npages - 1 - i) * size));\n    if (how != CACHED)\n",
        "crypto/aegis/vaes256.c",
    ),
    (
        "crypto/aegis/template.h",
        "        }\n    }\n    if (how != CACHED)\n",
        "crypto/aegis/vaes512.c",
    ),
    (
        "crypto/aegis256/template.h",
        "        v128_store(tag[i], found[0]);\n    }\n    if (how != CACHED)\n",
        "crypto/aegis256/vaes256.c",
    ),
    (
        "crypto/aegis256/template.h",
        "dst, size);\n    }\n    if (how != CACHED)\n",
        "crypto/aegis256/aesni.c",
    ),
    (
        "crypto/gcm/template.h",
        "(npages - 1 - i) * size)));\n    if (how != CACHED)\n",
        "crypto/aes_gcm/vaes256.c",
    ),
    (
        "crypto/gcm/template.h",
        "        }\n    }\n    if (how != CACHED)\n",
        "crypto/aes_gcm/aesni.c",
    ),
    (
        "crypto/gcm/template.h",
        "(npages - 1 - i) * size)));\n    if (how != CACHED)\n",
        "crypto/sm4_gcm/vaes256.c",
    ),
    ("crypto/xts/template.h", "    if (stream)\n", "crypto/xts/aesni.c"),
    ("crypto/xts/pages_vaes256.h", "    if (stream)\n", "crypto/xts/vaes256.c"),
    ("memory/plain.c", "zero);\n", "memory/plain.c"),
]


@on_x86
@pytest.mark.parametrize("at", range(len(SFENCES)), ids=[f"{f}-{s}" for f, _, s in SFENCES])
def test_a_missing_fence_is_found(at: int, tmp_path: Path) -> None:
    """The control of the first test."""
    file, before, source = SFENCES[at]
    shutil.copytree(native_build.CSRC, tmp_path, dirs_exist_ok=True)
    changed = tmp_path / file
    text, count = re.subn(
        re.escape(before) + r" *(_mm_s|simd_)fence\(\);",
        f"{before};",
        changed.read_text(encoding="utf-8"),
    )
    assert count == 1
    changed.write_text(text, encoding="utf-8")
    assert unfenced(compiled([tmp_path / source], tmp_path, f"-I{tmp_path}"))[0]


# ---- AArch64: what each step of the protocols needs ---------------------------------------------

#: Instructions that each function must have, in this order.
ORDERS = {
    "store/open.c": {
        "stable_version": "ldar",  # R1
        "unchanged": "dmb ishld, ldr",  # R3, R4
        "publish": "stlr, stlxr",  # W6, W7
    },
    "store/lock.c": {
        "lock_free_pages": "ldaxr, stlxr, ldaxr, stlxr, dmb ish",  # W1, W2, W3
        "lock_pages": "ldaxr, stlxr, dmb ish",  # the same of a lock that is taken over
        "orphaned": "ldar, ldar, ldar",
        "lock_to_write": "ldar, ldar",  # whether writers pause, after W2; until they do not
        "lock_await_writers": "ldar",
    },
    "store/rekey.c": {
        "turn_to": "stlr",  # both keys, before a page is sealed with the new one
        "core_page": "ldar",  # after R1
        "begin_rekey": "stlr, stlr",  # writers pause, and go on
        "finish": "stlr, dmb ish",  # all pages moved, before the old key goes
    },
    "pages/subkeys.c": {
        "subkey_borrow": "ldar",
        "subkey_kept": "dmb ishld, ldr",
        "begin": "str, dmb ish",
        "end": "str, stlr",
    },
}
NEEDED = [(file, name) for file, names in ORDERS.items() for name in names]


def disordered(csrc: Path, folder: Path, *flags: str) -> set[str]:
    """The functions that do not have what they need, compiled for AArch64."""
    prefix = "aarch64-linux-gnu-"
    for tool in ("gcc", "objdump"):
        if shutil.which(prefix + tool) is None:
            pytest.skip(f"needs {prefix}{tool}")
    found = set()
    for file, orders in ORDERS.items():
        made = folder / f"{Path(file).stem}.o"
        # Each atomic access where it is written, not in a function of the compiler's.
        options = [*native_build.flags(), "-g0", "-O1", "-fno-inline", "-mno-outline-atomics"]
        command = [prefix + "gcc", *options, *flags, f"-I{csrc}", "-c", csrc / file, "-o", made]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        code = subprocess.run(
            [prefix + "objdump", "-d", "--no-show-raw-insn", made],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name, order in orders.items():
            body = re.search(rf"^[0-9a-f]+ <{name}>:\n((?:.+\n)+)", code, re.MULTILINE)
            assert body, f"{file} has no function {name}"
            steps = (re.escape(step).replace("\\ ", r"\s+") for step in order.split(", "))
            if not re.search(r"\b.*?\t".join(steps) + r"\b", body[1], re.DOTALL):
                found.add(name)
    return found


def test_every_step_is_ordered(tmp_path: Path) -> None:
    assert not disordered(native_build.CSRC, tmp_path)


@pytest.mark.parametrize(
    ("flag", "missed"),
    [
        ("-D__atomic_thread_fence(order)=(void)0",
         {"unchanged", "lock_free_pages", "lock_pages", "subkey_kept", "begin", "finish"}),
        ("-D__ATOMIC_ACQUIRE=__ATOMIC_RELAXED",
         {"stable_version", "unchanged", "orphaned", "lock_to_write", "core_page", "subkey_borrow",
          "subkey_kept"}),
        ("-D__ATOMIC_RELEASE=__ATOMIC_RELAXED",
         {"lock_free_pages", "lock_pages", "publish", "turn_to", "finish", "begin", "end"}),
    ],
    ids=["fences", "acquire", "release"],
)  # fmt: skip
def test_a_step_without_its_order_is_found(flag: str, missed: set[str], tmp_path: Path) -> None:
    """The control of the test above."""
    assert disordered(native_build.CSRC, tmp_path, "-Wno-builtin-macro-redefined", flag) == missed
