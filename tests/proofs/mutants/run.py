# SPDX-License-Identifier: Apache-2.0
"""Small changes of security-relevant lines, each of which some test must notice: `make mutants`, or
`python tests/proofs/mutants/run.py [--jobs N] [--only WORD ...] [--fresh] [--json FILE]`.

changes.py lists the changes: a file of csrc/, or the wiper's, the exact text that is there (once)
and what is put in its place. For each, the objects that the file goes into are compiled again and
linked into a copy of the package, and the tests of its module run against that; if they pass, so
does the larger part of the suite named there. Tests that compile sources themselves find those with
the change (PYCCMEM_CSRC). A change is killed when a test fails, the process dies or the time is up,
and the same passes without the change right afterwards, and a test that failed fails with it again:
one that fails now and then, or a machine that is busy with something else, kills nothing. A change
that no longer fits its file ends the run before it begins. That the tests pass without any change
is looked at before they are first used, too.

Results are kept in build/mutants/results.json, and a run goes on where the last one ended: what is
asked again is what has changed, the file, the change or the tests it is met by. Ends with status 0
when every change was killed, 1 when not, 2 when the list or the unchanged tests are broken.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent.parent
ROOT = TESTS.parent
sys.path[:0] = [str(HERE), str(TESTS / "support"), str(ROOT)]

import native_build  # noqa: E402
from changes import CHANGES, MODULES, SUITE, Change, Tests  # noqa: E402

FOLDER = ROOT / "build" / "mutants"
WIPER = "hardening/wiper.c"  # in the package
KILLED, LIVED, BROKEN = "killed", "LIVED", "BROKEN"
TRIES = 3  # for tests that fail with a change and without it
PATIENCE = 20.0  # seconds a test run gets beside ten times what it takes without a change


class ListError(Exception):
    """The list of changes, or what it is applied to, is not as it should be."""


@dataclasses.dataclass
class Result:
    """What became of one change."""

    verdict: str
    by: str = ""  # the test, signal or limit that noticed it
    seconds: float = 0.0


# ---- building -------------------------------------------------------------------------------


def call(command: Sequence[str | Path]) -> None:
    """Runs a step of the build. Raises ListError with its output when it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ListError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def compile_command(source: Path, target: Path, csrc: Path) -> list[str]:
    """Compiles one file as the native module's build does, and writes what it depends on."""
    headers = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    return [
        *native_build.compiler(),
        *native_build.flags(),
        "-g0",
        f"-ffile-prefix-map={ROOT}/=",  # a module that tells where it was built fails a test
        "-DPy_LIMITED_API=0x030A0000",
        f"-I{csrc}",
        *(f"-I{path}" for path in sorted(headers)),
        *("-MMD", "-MF", str(target.with_suffix(".d"))),
        *("-c", str(source), "-o", str(target)),
    ]


class Workshop:
    """The objects of the unchanged sources, and copies of the package to put changed ones in."""

    def __init__(self, jobs: int) -> None:
        self.objects = FOLDER / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.glue = FOLDER / "_native.c"
        code = f"import build_ffi; build_ffi.ffibuilder.emit_c_code({str(self.glue)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ListError(f"build_ffi.py cannot write the binding:\n{done.stderr}")
        self.sources = [*native_build.sources(), self.glue]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for _ in pool.map(self._compile, self.sources):
                pass
        self.slots: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            self.slots.put(self._slot(number))
        self.unchanged = self._slot(jobs)
        self.link(self.unchanged, [])
        code = "import pyccmem; print(pyccmem.__file__)"
        command, environ = [sys.executable, "-c", code], environment(self.unchanged)
        found = subprocess.check_output(command, cwd=ROOT, env=environ, text=True).strip()
        if not Path(found).is_relative_to(self.unchanged):
            raise ListError(f"Tests would import {found}, which is not what is changed.")

    def _object(self, source: Path) -> Path:
        return self.objects / native_build.object_name(source)

    def _compile(self, source: Path) -> None:
        call(compile_command(source, self._object(source), native_build.CSRC))

    def _slot(self, number: int) -> Path:
        slot = FOLDER / f"slot{number}"
        shutil.rmtree(slot, ignore_errors=True)
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "_native.c")
        shutil.copytree(ROOT / "src" / "pyccmem", slot / "pyccmem", ignore=ignored)
        shutil.copytree(native_build.CSRC, slot / "csrc")
        (slot / "objects").mkdir()
        return slot

    def dependents(self, file: str) -> list[Path]:
        """The sources that are compiled from the file."""
        if source_of(file) == native_build.WIPER:
            return [native_build.WIPER]
        wanted = str(native_build.CSRC / file)
        return [
            source
            for source in self.sources
            if wanted in self._object(source).with_suffix(".d").read_text().split()
        ]

    def link(self, slot: Path, changed: Sequence[Path]) -> None:
        """Compiles the slot's own `changed` sources and links them with all others."""
        objects = []
        for source in self.sources:
            target = self._object(source)
            if source in changed:
                own = source
                if source != self.glue:
                    own = place_of(source, slot)
                target = slot / "objects" / target.name
                call(compile_command(own, target, slot / "csrc"))
            objects.append(target)
        module = slot / "pyccmem" / "_native.abi3.so"
        module.unlink(missing_ok=True)
        hardening = ["-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack", "-Wl,-s"]
        call([*native_build.compiler(), "-shared", "-pthread", *hardening, *objects, "-o", module])
        wiper = place_of(native_build.WIPER, slot)
        call([*wiper_command(wiper), "-o", wiper.with_name("_wiper.abi3.so")])


def source_of(file: str) -> Path:
    """The unchanged file of a change."""
    if file == WIPER:
        return native_build.WIPER
    return native_build.CSRC / file


def place_of(source: Path, slot: Path) -> Path:
    """Where a slot has its copy of it."""
    if source == native_build.WIPER:
        return slot / "pyccmem" / WIPER
    return slot / "csrc" / source.relative_to(native_build.CSRC)


def wiper_command(source: Path) -> list[str]:
    """Compiles and links the library that is preloaded, as setup.py does it."""
    flags = ["-std=gnu11", "-O3", "-g0", "-fvisibility=hidden", "-D_GNU_SOURCE", "-fPIC"]
    ending = ["-Wno-missing-attributes", "-Wl,-z,relro,-z,now", "-Wl,-s"]
    return [*native_build.compiler(), *flags, *ending, "-shared", str(source), "-ldl"]


def changed_text(change: Change) -> str:
    """The file with the change made. Raises ListError when it does not fit."""
    text = source_of(change.file).read_text(encoding="utf-8")
    count = text.count(change.old)
    if count != 1:
        raise ListError(f"{change.name}: {change.file} has the old text {count} times, not once.")
    if change.old == change.new:
        raise ListError(f"{change.name} changes nothing.")
    return text.replace(change.old, change.new)


# ---- running --------------------------------------------------------------------------------


def environment(slot: Path) -> dict[str, str]:
    """In which the package and the sources are the slot's."""
    found = dict(os.environ, PYTHONPATH=str(slot), PYTHONDONTWRITEBYTECODE="1")
    found["PYCCMEM_CSRC"] = str(slot / "csrc")
    found.pop("PYTEST_ADDOPTS", None)
    return found


def no_core_dumps() -> None:
    """In a child, before it becomes the test run."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Run(NamedTuple):
    """One run of tests: whether all passed, what noticed something if not, and which test failed,
    where that is known."""

    good: bool
    why: str = ""
    case: str = ""


def run_tests(slot: Path, tests: Tests, timeout: float) -> Run:
    """Runs them against the slot's package."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as cache:
        return _run_tests(slot, tests, timeout, Path(cache))


def _run_tests(slot: Path, tests: Tests, timeout: float, cache: Path) -> Run:
    """run_tests() with a folder for what pytest remembers."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header"]
    command += ["-o", f"cache_dir={cache}"]
    command += ["-W", "ignore::pytest.PytestUnhandledThreadExceptionWarning", "-rN", "--tb=line"]
    environ = {**environment(slot), **dict(tests.environment)}
    process = subprocess.Popen(
        [*command, *tests.arguments],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=no_core_dumps,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Run(False, f"no end in {timeout:.0f} s")
    finally:
        # Children that a dying test left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == 0:
        return Run(True)
    if process.returncode < 0:
        return Run(False, signal.Signals(-process.returncode).name)
    if process.returncode == 1:
        found = [line for line in output.splitlines() if ": " in line and line.startswith("/")]
        place = found[-1].replace(f"{ROOT}/", "") if found else output.strip().splitlines()[-1]
        failed = cache / "v" / "cache" / "lastfailed"
        cases = list(json.loads(failed.read_text(encoding="utf-8"))) if failed.exists() else []
        case = cases[0] if len(cases) == 1 and "::" in cases[0] else ""
        return Run(False, f"{case.partition('::')[2]} {place}"[:200].strip(), case)
    # A module that cannot be imported fails the collection, which is how some changes are noticed.
    return Run(False, "start: " + output.strip().splitlines()[-1][:200])


class Runner:
    """Meets the changes with their tests, several at a time, and remembers what came of it."""

    def __init__(self, workshop: Workshop, fresh: bool) -> None:
        self.workshop = workshop
        self.file = FOLDER / "results.json"
        self.lock = threading.Lock()
        self.measuring = threading.Lock()
        self.known: dict[str, dict[str, object]] = {}
        self.times: dict[Tests, float] = {}
        if self.file.exists() and not fresh:
            self.known = json.loads(self.file.read_text(encoding="utf-8"))

    def limit(self, tests: Tests) -> float:
        """How long the tests may take with a change. Without any they must pass, which is looked at
        before they are first used. Raises ListError when they do not."""
        with self.measuring:
            if tests not in self.times:
                begin = time.monotonic()
                run = run_tests(self.workshop.unchanged, tests, 3600)
                if not run.good:
                    raise ListError(f"Without any change, {tests} ends with: {run.why}")
                self.times[tests] = time.monotonic() - begin
            return PATIENCE + 10 * self.times[tests]

    def key(self, change: Change) -> str:
        """Names the change, the file and the tests as they are now."""
        parts = [change.file, change.old, change.new, str(tests_of(change)), str(SUITE)]
        parts.append(source_of(change.file).read_text(encoding="utf-8"))
        files = {name for tests in (*tests_of(change), *SUITE) for name in tests.arguments}
        for path in sorted(name.split("::")[0] for name in files if name.startswith("tests/")):
            parts.append((ROOT / path).read_text(encoding="utf-8"))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def noticed(self, slot: Path, tests: Tests) -> Result | None:
        """What the tests make of the slot's change; None when they pass."""
        limit = self.limit(tests)
        for _ in range(TRIES):
            run = run_tests(slot, tests, limit)
            if run.good:
                return None
            same = tests._replace(arguments=(run.case,)) if run.case else tests
            if not run_tests(self.workshop.unchanged, same, limit).good:
                continue
            if not run.case or not run_tests(slot, same, limit).good:
                return Result(KILLED, run.why)
        return Result(BROKEN, f"fails now and then, or without the change too: {run.why}")

    def meet(self, change: Change) -> Result:
        """Builds the change and runs its tests."""
        key, begin = self.key(change), time.monotonic()
        if key in self.known:
            known = self.known[key]
            return Result(str(known["verdict"]), str(known["by"]), float(str(known["seconds"])))
        result = Result(LIVED)
        slot = self.workshop.slots.get()
        try:
            changed = self.workshop.dependents(change.file)
            target = place_of(source_of(change.file), slot)
            original = target.read_text(encoding="utf-8")
            target.write_text(changed_text(change), encoding="utf-8")
            try:
                try:
                    self.workshop.link(slot, changed)
                except ListError as error:
                    return Result(BROKEN, str(error).strip().splitlines()[-1])
                for tests in (*tests_of(change), *SUITE):
                    if found := self.noticed(slot, tests):
                        result = found
                        break
            finally:
                target.write_text(original, encoding="utf-8")
        finally:
            self.workshop.slots.put(slot)
        result.seconds = round(time.monotonic() - begin, 1)
        if result.verdict == BROKEN:
            return result  # and asked again the next time
        with self.lock:
            self.known[key] = {"name": change.name, **dataclasses.asdict(result)}
            scratch = self.file.with_suffix(".new")
            scratch.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
            scratch.replace(self.file)
        return result


def tests_of(change: Change) -> tuple[Tests, ...]:
    """Those of the change itself, then those of its module."""
    return (*change.tests, *MODULES[change.file])


# ---- the report -----------------------------------------------------------------------------


def report(results: dict[str, Result]) -> bool:
    """Prints the table; whether all is as it should be."""
    width = max(map(len, results), default=0)
    for change in CHANGES:
        if change.name in results:
            r = results[change.name]
            print(f"{change.name:{width}}  {r.verdict:10}  {r.seconds:6.1f} s  {r.by}")
    killed = sum(r.verdict == KILLED for r in results.values())
    others = len(results) - killed
    print(f"\n{len(results)} changes: {killed} killed, {others} that lived or do not compile")
    return not others


def chosen(words: Sequence[str]) -> list[Change]:
    """The changes whose name holds one of the words; all without words."""
    return [c for c in CHANGES if not words or any(word in c.name for word in words)]


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="changes at a time")
    parser.add_argument("--only", nargs="+", default=[], help="changes with this in their names")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    changes = chosen(options.only)
    try:
        if len({c.name for c in CHANGES}) != len(CHANGES):
            raise ListError("Two changes have the same name.")
        for change in CHANGES:
            changed_text(change)
        runner = Runner(Workshop(options.jobs), options.fresh)
        for change in CHANGES:
            if not runner.workshop.dependents(change.file):
                raise ListError(f"{change.name}: nothing is compiled from {change.file}.")
        asked = [c for c in changes if runner.key(c) not in runner.known]
        print(f"{len(changes)} changes, {len(asked)} of them to be met", flush=True)
    except ListError as error:
        print(error, file=sys.stderr)
        return 2
    results: dict[str, Result] = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(runner.meet, change): change for change in changes}
        for future in concurrent.futures.as_completed(waiting):
            name = waiting[future].name
            try:
                results[name] = future.result()
            except ListError as error:
                print(error, file=sys.stderr)
                os._exit(2)
            print(f"  {name}: {results[name].verdict}", file=sys.stderr, flush=True)
    good = report(results)
    if options.json:
        rows = {name: dataclasses.asdict(result) for name, result in results.items()}
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
