# SPDX-License-Identifier: Apache-2.0
"""The proof of constant time: `make ct`, or
`python tests/proofs/ct/run.py [--fast | --only SUBJECT ...]`.

Builds subjects.c and controls.c with the library's own sources and flags, runs each subject on each
tier and each control under Valgrind's memcheck, prints what became of them, and ends with status 0
when every subject was silent and every control was caught where it leaks, 1 when not, 3 when
something needed is not installed. Only the standard library is used, no binding.

The tiers vaes256 and vaes512 are left out, because Valgrind knows neither VAES nor AVX-512. They
are compiled from the templates that aesni is compiled from.
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
CSRC = ROOT / "csrc"
TIERS = ("portable", "aesni")
FAST = ("xts-data-units", "aegis-messages")
NOT_ON_THIS_PROCESSOR, FOUND = 77, 99
NOT_INSTALLED = 3
TIMEOUT = 300

#: Functions that a program replaces by its own, which then call the library's or the system's.
WRAPPED = {"subjects": ("read", "getrandom"), "controls": ("kdf_counter_cmac",)}


class MissingToolError(Exception):
    """Something needed is not installed; says what."""


class BuildError(Exception):
    """The compiler or the linker refused; says what they wrote."""


@dataclass
class Finding:
    """One error of memcheck: its kind, and the functions it lies in, innermost first."""

    kind: str
    frames: list[tuple[str, str]]

    def __str__(self) -> str:
        stack = " < ".join(f"{function} ({place})" for function, place in self.frames[:5])
        return f"{self.kind}: {stack}"


@dataclass
class Outcome:
    """How one program under memcheck ended."""

    status: int
    stderr: str
    findings: list[Finding] = field(default_factory=list)


# ---- building -------------------------------------------------------------------------------


def compiler() -> list[str]:
    """The C compiler's command: $CC, else gcc."""
    return shlex.split(os.environ.get("CC", "")) or ["gcc"]


def flags() -> list[str]:
    """The flags that the native module is compiled with, read from build_ffi.py itself."""
    for node in ast.parse((ROOT / "build_ffi.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "compile_args":
            # Valgrind before 3.20 cannot read the DWARF 5 that Clang writes.
            return [*ast.literal_eval(node.value), "-fPIC", "-gdwarf-4", "-D_GNU_SOURCE"]
    raise BuildError("build_ffi.py has no compile_args. It should set them once, to a plain list.")


def require_tools() -> None:
    """Raises MissingToolError unless there are a compiler, Valgrind and Valgrind's headers."""
    if shutil.which(compiler()[0]) is None:
        raise MissingToolError(f"There is no {compiler()[0]}: install gcc, or set CC.")
    probe = subprocess.run(
        [*compiler(), "-E", "-x", "c", "-"],
        input="#include <valgrind/memcheck.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if shutil.which("valgrind") is None or probe.returncode:
        raise MissingToolError(
            "Valgrind or its headers are missing: install the package valgrind (Debian, Ubuntu) "
            "or valgrind-devel (Fedora)."
        )


def call(command: Sequence[str]) -> None:
    """Runs a step of the build; raises BuildError with its output when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def object_name(source: Path, csrc: Path = CSRC) -> str:
    """The name of a source's object file; files of different folders may have the same name."""
    path = source.relative_to(csrc) if source.is_relative_to(csrc) else Path(source.name)
    return "-".join(path.with_suffix(".o").parts)


def build(target: Path) -> dict[str, Path]:
    """Builds both programs into the folder `target`; raises BuildError."""
    sources = sorted(CSRC.rglob("*.c")) + [HERE / f"{name}.c" for name in WRAPPED]
    objects = {source: target / object_name(source) for source in sources}
    options = [*flags(), "-DCCMEM_CT", f"-I{CSRC}"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(
            lambda source: call(
                [*compiler(), *options, "-c", str(source), "-o", str(objects[source])]
            ),
            sources,
        ):
            pass
    library = [str(path) for source, path in objects.items() if source.parent != HERE]
    programs = {name: target / name for name in WRAPPED}
    for name, program in programs.items():
        wraps = [f"-Wl,--wrap={function}" for function in WRAPPED[name]]
        main = str(objects[HERE / f"{name}.c"])
        call([*compiler(), "-pthread", *wraps, main, *library, "-o", str(program)])
    return programs


def declassified() -> list[str]:
    """Where the library itself makes public what it computed from secrets: file and line."""
    return [
        f"{path.relative_to(CSRC)}:{number}"
        for path in sorted(CSRC.rglob("*.[ch]"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.lstrip().startswith("DECLASSIFY(")
    ]


def listed(program: Path) -> list[list[str]]:
    """What a program says of itself when it is called without arguments: words, line by line."""
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


# ---- running --------------------------------------------------------------------------------


def frame(element: ElementTree.Element) -> tuple[str, str]:
    """A stack frame's function and place."""
    place = element.findtext("file") or Path(element.findtext("obj") or "?").name
    line = element.findtext("line")
    return element.findtext("fn") or "?", f"{place}:{line}" if line else place


def memcheck(command: Sequence[str | Path]) -> Outcome:
    """Runs a program under memcheck."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [
                "valgrind",
                "--tool=memcheck",
                "--quiet",
                f"--error-exitcode={FOUND}",
                "--xml=yes",
                f"--xml-file={report}",
                *command,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            env={key: value for key, value in os.environ.items() if key != "VALGRIND_OPTS"},
        )
        try:
            root = ElementTree.parse(report).getroot()
        except (OSError, ElementTree.ParseError):
            return Outcome(done.returncode, done.stderr + "Valgrind wrote no whole report.\n")
    findings = [
        Finding(error.findtext("kind") or "?", [frame(f) for f in error.iterfind("stack[1]/frame")])
        for error in root.iterfind("error")
        # With --xml, memcheck looks for memory that was not freed whatever --leak-check says.
        if not (error.findtext("kind") or "").startswith("Leak_")
    ]
    return Outcome(done.returncode, done.stderr, findings)


def judge_subject(outcome: Outcome) -> tuple[bool, str]:
    """Silence, and a program that came to its end."""
    if outcome.status == NOT_ON_THIS_PROCESSOR and not outcome.findings:
        return True, "skipped: not on this processor"
    if outcome.findings:
        return False, f"LEAKS: {len(outcome.findings)} reports"
    if outcome.status:
        return False, f"FAILED with status {outcome.status}"
    return True, "silent"


def judge_control(outcome: Outcome, kind: str, function: str) -> tuple[bool, str]:
    """Exactly the error that the control is made to give, in the function that leaks."""
    if outcome.status == NOT_ON_THIS_PROCESSOR and not outcome.findings:
        return True, "skipped: not on this processor"
    # A compiler's specialised copy of a function has a suffix after a dot.
    found = {(f.kind, f.frames[0][0].split(".")[0]) for f in outcome.findings if f.frames}
    if outcome.status == FOUND and found == {(kind, function)}:
        return True, f"caught: {kind} in {function}"
    return False, f"NOT CAUGHT: {kind} in {function} expected, status {outcome.status}"


def run_all(programs: dict[str, Path], fast: bool, only: Sequence[str] = ()) -> bool:
    """Runs subjects and controls, prints a line for each; True when all are as they should be."""
    jobs: list[tuple[str, str, list[str | Path], tuple[str, str] | None]] = []
    for (name,) in listed(programs["subjects"]):
        if name in only if only else not fast or name in FAST:
            # No kernel stands behind this one, only a header.
            tiers = TIERS[:1] if name == "gf128" else TIERS
            jobs += [(name, tier, [programs["subjects"], name, tier], None) for tier in tiers]
    for name, kind, function in listed(programs["controls"]):
        jobs.append((f"control: {name}", "", [programs["controls"], name], (kind, function)))

    all_good, silent = True, 0
    print(f"{'what':32} {'tier':10} result")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(memcheck, [command for _, _, command, _ in jobs])
        for (name, tier, _, expected), outcome in zip(jobs, outcomes, strict=True):
            good, text = judge_control(outcome, *expected) if expected else judge_subject(outcome)
            print(f"{name:32} {tier:10} {text}", flush=True)
            if not good:
                for finding in outcome.findings[:20]:
                    print(f"    {finding}")
                # Lines with -- are Valgrind's: it knows no memfd_secret, and mlock serves instead.
                notes = [x for x in outcome.stderr.splitlines() if not x.startswith("--")]
                print("".join(f"    {note}\n" for note in notes[-5:]), end="")
            all_good &= good
            silent += text == "silent"
    print("made public in csrc/, with the reason there:", ", ".join(declassified()))
    if not silent:
        print("No subject ran.")
    return all_good and silent > 0


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="The proof of constant time.")
    parser.add_argument("--fast", action="store_true", help=f"only {', '.join(FAST)}, and controls")
    parser.add_argument("--only", nargs="+", default=(), help="only these subjects, and controls")
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        require_tools()
        with tempfile.TemporaryDirectory() as folder:
            good = run_all(build(Path(folder)), arguments.fast, arguments.only)
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return NOT_INSTALLED
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    verdict = "no secret-dependent branch or address" if good else "NOT PROVED"
    print(f"{verdict} ({time.monotonic() - start:.0f} s)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
