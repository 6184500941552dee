# SPDX-License-Identifier: Apache-2.0
"""The threaded tests under ThreadSanitizer: `make tsan`.

The same as `python tests/proofs/tsan/run.py [ARGUMENT ...]`, whose arguments go to pytest.

Builds the native module with -fsanitize=thread in a copy of the tree, runs the tests in an
interpreter that the sanitizer's library is loaded into, and counts its reports. Loads of the
sequence locks are reported as well, and set apart here (by_design()): both accesses of a report
must be ones that a lock allows, which no list of suppressions can ask for. Two controls show that
the sanitizer sees what it should: those loads must be among the reports of the tests, and races
that are put into the copy (SEEDED) among the others. Ends with status 0 when the tests pass, all
their reports are by design and both controls have some, else 1; 3 when something needed is not
installed.

The interpreter is not built with the sanitizer, so it is not looked at; what its lock orders is
known all the same, since it is made of the C library's. Address spaces are laid out as the
sanitizer needs them (setarch -R). Forks are left out: a child of several threads has a sanitizer
whose locks nobody will open.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent.parent
TREE = ROOT / "build" / "tsan" / "tree"
COPIED = ("csrc", "src", "tests")
FILES = ("setup.py", "build_ffi.py", "pyproject.toml", "README.md", "LICENSE")
REPORTS = TREE.parent / "reports"
NOT_INSTALLED = 3

TESTS = (
    "tests/store/test_threads.py",
    "tests/mapping/test_mapping_threads.py",
    "tests/store/test_integrity.py",
    "tests/core/test_failures.py::test_the_last_version_is_used_once",
    "tests/memory/test_plain.py::test_threads_share_the_pool",
    "tests/core/test_keys.py::test_keys_may_be_dropped_in_other_threads",
    "tests/core/test_tensor.py::test_threads_read_and_write_at_once",
    "tests/store/test_sealer.py::test_threads_never_seal_one_page_twice",
    "tests/product/test_matmul_native.py::test_each_page_as_one_writer_left_it",
    "tests/cache/test_kv_cache.py::test_closing_while_a_call_runs",
    "tests/cache/test_kv_cache.py::test_eight_conversations_in_eight_threads",
    "tests/cache/test_kv_cache.py::test_eight_threads_on_one_cache",
    "tests/cache/test_kv_cache.py::test_eight_forks_in_eight_threads",
    "tests/cache/test_tenants.py",
    "-k",
    "not bit and not fork and not child and not put_together and not dumped"
    # These pages take the same paths as those of two chunks, and up to eight times as long.
    " and not 16384 and not 32768 and not 65536"
    # It changes bytes while they are written from: the caller's race, and not the library's.
    " and not source_that_changes",
)
SEEDED_TESTS = (
    "tests/store/test_threads.py::test_no_reader_sees_a_torn_page[aes-256-xts-8192-1]",
    "tests/cache/test_kv_cache.py::test_eight_forks_in_eight_threads",
)

#: What the second control puts in place of lines of a file of csrc/, and the function that reports
#: must name then: a version that is published by a plain store; a buffer that all readers open
#: into, stores by the very functions whose loads are by design; a count of a cache's numbers that
#: is read without the atomic operation.
SEEDED = (
    (
        "store/lock.h",
        "__atomic_store_n(&s->version[first + i], v[i], __ATOMIC_RELEASE);",
        "*(volatile uint64_t *)&s->version[first + i] = v[i];",
        "publish",
    ),
    (
        "store/open.c",
        "        bad = c->page.ops->open(&c->page, to,",
        "        static uint8_t seeded[PAGE_BATCH * CCMEM_PAGE_SIZE_MAX];\n"
        "        c->page.ops->open(&c->page, seeded, s->ct + (first << c->page_shift),\n"
        "                          s->first + first, v, s->tag ? s->tag + first : NULL, n,\n"
        "                          flags);\n"
        "        bad = c->page.ops->open(&c->page, to,",
        "crypt_chunk",
    ),
    (
        "cache/pool.c",
        "    uint64_t seen = __atomic_load_n(&pool->numbers, __ATOMIC_RELAXED);",
        "    uint64_t seen = *(volatile uint64_t *)&pool->numbers;",
        "pool_numbers",
    ),
)

# A race is by design where a sequence lock's reader loads what a writer stores, since it drops what
# it made of that when a writer came between (docs/design/sequence-lock.md, R2 and W4).
# ThreadSanitizer knows neither the fences nor the second look.
#: The reader's functions: they load ciphertext, tags, and keys that are derived when used ...
LOADING = {
    *(("pages/page_aegis.c", name) for name in ("open", "open_part", "open_fused")),
    *(("pages/page_gcm.c", name) for name in ("open", "open_part")),
    *(("pages/page_xts.c", name) for name in ("open", "open_part", "open_fused")),
    ("store/version.c", "never_written"),
}
#: ... unless they were called with the page's lock held, where nobody else may be at the page.
LOCKED = {
    ("pages/page_whole.c", "modify_in"),
    ("pages/page_xts.c", "modify"),
    ("store/write.c", "write_parts"),
}
#: What may store meanwhile: a page's writer, and who fills or wipes the entry of a key.
STORING = {
    *((f"pages/page_{name}.c", "seal") for name in ("aegis", "gcm")),
    ("pages/page_whole.c", "page_modify_whole"),
    *(("pages/page_xts.c", name) for name in ("seal", "modify")),
    *(("pages/subkeys.c", name) for name in ("fill", "subkey_end")),
}
#: Any two threads may load and store an entry of the tweak cache at once: parts of two do not
#: fit together (pages/tweak_cache.h).
TWEAKS = {("pages/tweak_cache.h", name) for name in ("tweak_cache_get", "tweak_cache_put")}

ACCESS = re.compile(r"^  (?:Previous )?(atomic )?(read|write) of size \d+", re.I | re.M)
FRAME = re.compile(r"^    #\d+ (\S+) (\S+?)(?::\d+)? ", re.M)


class Access(NamedTuple):
    """One of the two of a report, with the (file, function) of its stack, innermost first."""

    atomic: bool
    stores: bool
    stack: list[tuple[str, str]]

    def by_lock(self) -> bool:
        """Whether a sequence lock allows it while another thread is at the same bytes."""
        functions = set(self.stack)
        if self.stores:
            return bool(functions & STORING)
        return bool(functions & LOADING) and not functions & LOCKED


def accesses(report: str) -> list[Access]:
    """The two of them, where both are told; compilers' headers are left out of the stacks."""
    found = []
    for part in report.split("\n\n"):
        if kind := ACCESS.search(part):
            frames = FRAME.findall(part)
            stack = [
                (f"/{file}".rpartition("/csrc/")[2], name)  # relative, or not
                for name, file in frames
                if "/include/" not in file
            ]
            found.append(Access(bool(kind[1]), kind[2].lower() == "write", stack))
    return found


def by_design(pair: Sequence[Access]) -> bool:
    """Whether a report with these accesses is one of a race that is meant to be."""
    if len(pair) != 2 or any(access.atomic for access in pair):
        return False
    known = [access for access in pair if access.stack]  # an old stack may be forgotten
    if known and all(access.stack[0] in TWEAKS for access in known):
        return True
    one_stores = pair[0].stores != pair[1].stores
    return bool(known) and one_stores and all(access.by_lock() for access in known)


def of_the_loader(pair: Sequence[Access]) -> bool:
    """Whether it is about thread-local storage: the dynamic loader has it from the allocator in one
    thread, frees it in another, and orders the two by what is not seen."""
    known = [access.stack for access in pair if access.stack]
    return bool(known) and all("dl-tls.c" in (file for file, _ in stack) for stack in known)


def label(pair: Sequence[Access]) -> str:
    """The two innermost functions."""
    return " and ".join(access.stack[0][1] if access.stack else "?" for access in pair)


def build() -> None:
    """The native module of the copy, from its sources as they are: what an earlier run built may be
    newer than a source that was put back."""
    environment = dict(os.environ, PYCCMEM_SANITIZE="thread")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"],
        cwd=TREE,
        env=environment,
        check=True,
        stderr=subprocess.DEVNULL,
    )


def copy() -> None:
    """The tree as it is now, whatever the last run left there."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in COPIED:
        shutil.rmtree(TREE / name, ignore_errors=True)
        shutil.copytree(ROOT / name, TREE / name, ignore=ignored)
    for name in FILES:
        shutil.copy2(ROOT / name, TREE / name)


def run(name: str, arguments: Sequence[str], **more: str) -> tuple[int, dict[str, list[str]], int]:
    """pytest's status, the reports by their pairs of functions, and how many more were by design.
    The reports stay in a folder of that name."""
    library = subprocess.run(
        ["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_absolute() or shutil.which("setarch") is None:
        print("ThreadSanitizer needs gcc's libtsan, and setarch of util-linux.", file=sys.stderr)
        sys.exit(NOT_INSTALLED)
    reports = REPORTS / name
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    options = [f"log_path={reports / 'of'}", "exitcode=0", "history_size=7", "die_after_fork=0"]
    options.append("suppress_equal_addresses=0")  # else one race by design would hide others there
    environment = dict(
        os.environ,
        LD_PRELOAD=library,
        TSAN_OPTIONS=":".join(options),
        PYTHONPATH=str(TREE / "src"),
        OPENBLAS_NUM_THREADS="1",  # its threads wait for each other in ways that are not seen
        OMP_NUM_THREADS="1",
        **more,
    )
    python = ["setarch", "-R", sys.executable]
    where = [*python, "-c", "from pyccmem import _native; print(_native.__file__)"]
    found_at = subprocess.run(
        where, cwd=TREE, env=environment, capture_output=True, text=True, check=True
    )
    if not Path(found_at.stdout.strip()).is_relative_to(TREE):
        sys.exit(f"{found_at.stdout.strip()} would be tested, which comes before the copy's")
    command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *arguments], cwd=TREE, env=environment, check=False)
    found: dict[str, list[str]] = {}
    meant = 0
    for report in sorted(reports.iterdir()):
        for part in report.read_text(errors="replace").split("WARNING: ThreadSanitizer")[1:]:
            pair = accesses(part)
            if part.startswith(": data race") and by_design(pair):
                meant += 1
            elif not of_the_loader(pair):
                found.setdefault(label(pair) or part.splitlines()[0], []).append(part)
    return done.returncode, found, meant


def seed() -> None:
    """Puts the races of the second control into the copy."""
    for name, old, new, _ in SEEDED:
        file = TREE / "csrc" / name
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"a seeded race no longer fits csrc/{name}"
        file.unlink()
        file.write_text(text.replace(old, new), encoding="utf-8")


def check_names() -> None:
    """A function that has another name or place now would have its races reported."""
    for file, name in {*LOADING, *LOCKED, *STORING, *TWEAKS}:
        text = (ROOT / "csrc" / file).read_text(encoding="utf-8")
        assert re.search(rf"\b{name}\(", text), f"csrc/{file} has no function {name}"


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    check_names()
    copy()
    build()
    status, found, meant = run("tests", arguments or TESTS)
    for parts in found.values():
        print(f"ThreadSanitizer{parts[0]}")
    for pair, parts in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(parts):5} x {pair}")
    print(f"tests: status {status}, {sum(map(len, found.values()))} reports")
    print(f"control: {meant} reports of races that are by design")
    if arguments:
        return int(status != 0 or bool(found))
    seed()
    build()
    # The loops of higher tiers are in assembler, whose stores the sanitizer does not see.
    _, seeded, _ = run("seeded", SEEDED_TESTS, PYCCMEM_TIER="aesni")
    noticed = [sum(len(seeded[pair]) for pair in seeded if name in pair) for *_, name in SEEDED]
    print(f"control: {noticed} reports of the races that were put in, in turn")
    return int(not (status == 0 and not found and meant and all(noticed)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
