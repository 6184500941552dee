# SPDX-License-Identifier: Apache-2.0
"""The threaded tests under ThreadSanitizer: `make tsan`, or `python tests/tsan.py [ARGUMENT ...]`.

Builds the native module with -fsanitize=thread in a copy of the tree, runs the tests in an
interpreter that the sanitizer's library is loaded into, and counts its reports. What tsan.supp
leaves out is by design and says why. Two controls show that the rest would be reported: without
tsan.supp the sequence-locked reads are, and so is a race that is put into the copy, a version that
is published by a plain store. Ends with status 0 when the tests pass without a report and both
controls have some, else 1; 3 when something needed is not installed.

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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TREE = ROOT / "build" / "tsan" / "tree"
COPIED = ("csrc", "src", "tests")
FILES = ("setup.py", "build_ffi.py", "pyproject.toml", "README.md", "LICENSE")
REPORTS = TREE.parent / "report"
NOT_INSTALLED = 3

TESTS = (
    "tests/test_threads.py",
    "tests/test_mapping_threads.py",
    "tests/test_integrity.py",
    "tests/test_failures.py::test_the_last_version_is_used_once",
    "tests/test_plain.py::test_threads_share_the_pool",
    "tests/test_keys.py::test_keys_may_be_dropped_in_other_threads",
    "tests/test_tensor.py::test_threads_read_and_write_at_once",
    "tests/test_sealer.py::test_threads_never_seal_one_page_twice",
    "tests/test_matmul_native.py::test_each_page_as_one_writer_left_it",
    "-k",
    "not bit and not fork and not child and not put_together and not dumped",
)
TORN = "tests/test_threads.py::test_no_reader_sees_a_torn_page[aes-256-xts-8192-1]"

#: What the second control puts in place of the store that publishes a version.
SEEDED = (
    "__atomic_store_n(&s->version[first + i], v[i], __ATOMIC_RELEASE);",
    "*(volatile uint64_t *)&s->version[first + i] = v[i];",
)


def build() -> None:
    """The native module of the copy, from its sources as they are."""
    environment = dict(os.environ, PYCCMEM_SANITIZE="thread")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=TREE,
        env=environment,
        check=True,
        stderr=subprocess.DEVNULL,
    )


def copy() -> None:
    """The tree, with what the last build left in it."""
    TREE.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        (TREE / name).mkdir(exist_ok=True)
        command = ["cp", "-Rup", f"{ROOT / name}/.", str(TREE / name)]
        subprocess.run(command, check=True)
    for module in (TREE / "src" / "pyccmem").glob("*.so"):
        module.unlink()
    for name in FILES:
        shutil.copy2(ROOT / name, TREE / name)


def run(arguments: Sequence[str], suppressed: bool) -> tuple[int, Counter[str]]:
    """pytest's status, and how often each pair of functions was reported."""
    library = subprocess.run(
        ["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_absolute() or shutil.which("setarch") is None:
        print("ThreadSanitizer needs gcc's libtsan, and setarch of util-linux.", file=sys.stderr)
        sys.exit(NOT_INSTALLED)
    for old in REPORTS.parent.glob("report.*"):
        old.unlink()
    options = [f"log_path={REPORTS}", "exitcode=0", "history_size=4", "die_after_fork=0"]
    if suppressed:
        options.append(f"suppressions={HERE / 'tsan.supp'}")
    environment = dict(
        os.environ,
        LD_PRELOAD=library,
        TSAN_OPTIONS=":".join(options),
        PYTHONPATH=str(TREE / "src"),
        OPENBLAS_NUM_THREADS="1",  # its threads wait for each other in ways that are not seen
        OMP_NUM_THREADS="1",
    )
    command = ["setarch", "-R", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *arguments], cwd=TREE, env=environment, check=False)
    found: Counter[str] = Counter()
    for report in sorted(REPORTS.parent.glob("report.*")):
        for part in report.read_text(errors="replace").split("WARNING: ThreadSanitizer")[1:]:
            tops = re.findall(r"#0 (\S+)", part)[:2]
            found[" and ".join(tops)] += 1
    return done.returncode, found


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    copy()
    build()
    status, found = run(arguments or TESTS, suppressed=True)
    for pair, times in found.most_common():
        print(f"{times:5} x {pair}")
    print(f"tests: status {status}, {sum(found.values())} reports")
    if arguments:
        return int(status != 0 or bool(found))
    _, by_design = run([TORN], suppressed=False)
    print(f"control: {sum(by_design.values())} reports of what tsan.supp leaves out")
    store = TREE / "csrc" / "store.c"
    text = store.read_text(encoding="utf-8")
    assert text.count(SEEDED[0]) == 1, "the seeded race no longer fits csrc/store.c"
    store.write_text(text.replace(*SEEDED), encoding="utf-8")
    try:
        build()
        _, seeded = run([TORN], suppressed=True)
    finally:
        store.unlink()  # the next run copies it again
    print(f"control: {sum(seeded.values())} reports of a version published by a plain store")
    return int(not (status == 0 and not found and by_design and seeded))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
