# SPDX-License-Identifier: Apache-2.0
"""Attacks a process of one's own: one that runs, or a command that is started for it.

The control of each way is a twin that holds the samples in the clear. In the process itself the
marker is what lies in every process: words of its environment or command line, and of its program.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .. import errors
from ..demo import command as demo
from ..demo.worker import Worker
from ..safetensors import open_file, read_header
from .job import PLAIN
from .look import Look
from .outcome import Outcome
from .rules import OwnRules
from .trial import Result, resolved
from .wanted import MARKER, Wanted, text_parts
from .ways.way import Subject, Way

__all__ = ["OWN", "add_arguments", "attack"]

OWN = "attacked"

_VARIABLE = "PYCCMEM_ATTACK_MARKER"
_SAMPLE = 16
_MOST = 4096  # samples of one file
_MARKERS = 64  # samples of environment and command line
_CLEAN = "Nothing of what was looked for was found in the process."


@dataclass(frozen=True)
class Holding:
    """What the twin is to hold."""

    parts: dict[str, bytes] = field(repr=False)
    threads: int = 1


class Twin(Worker):
    """The child that holds the samples."""

    module = "pyccmem.attack.holder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of an attack on a process of one's own."""
    own = parser.add_argument_group(
        "a process of your own",
        "what is looked for: at least one of --text, --file, --hex, --weights",
    )
    own.add_argument("--pid", metavar="PID", type=demo.count(1, 2**31 - 1), help="its number")
    own.add_argument(
        "--twin",
        metavar="PID",
        type=demo.count(1, 2**31 - 1),
        help="with --pid: a process that does the same unprotected, in the place of the twin that "
        "only holds what is looked for",
    )
    own.add_argument(
        "--text",
        metavar="TEXT",
        action="append",
        default=[],
        help="text of 16 letters or more; repeatable (others can see it in this command's line: "
        "--file is for secrets)",
    )
    own.add_argument(
        "--file",
        metavar="FILE",
        action="append",
        default=[],
        type=Path,
        help="a file whose bytes are looked for; repeatable",
    )
    own.add_argument(
        "--hex",
        metavar="BYTES",
        action="append",
        default=[],
        help="16 bytes or more in hexadecimal; repeatable",
    )
    own.add_argument("--weights", metavar="FILE", type=Path, help="a safetensors file of weights")
    own.add_argument(
        "--interval",
        metavar="SECONDS",
        type=float,
        default=1.0,
        help="between looks, and before the first one at a command (1)",
    )
    own.add_argument(
        "command_line",
        metavar="-- COMMAND",
        nargs=argparse.REMAINDER,
        help="a command to start, attack and end",
    )


def attack(
    arguments: argparse.Namespace, ways: Sequence[Way], directory: Path, say: Callable[[str], None]
) -> Outcome:
    """Looks as often as is asked for, through memory; and at the last look in all ways. Raises
    ArgumentError, FileReadError, FileFormatError, NoProcessError, NoPermissionError."""
    command = list(arguments.command_line)
    if command[:1] == ["--"]:
        del command[0]
    if arguments.pid is not None and command:
        raise errors.ArgumentError("Name either --pid or a command, not both.")
    if arguments.twin is not None and arguments.twin == arguments.pid:
        raise errors.ArgumentError("--twin names the process of --pid; name its twin.")
    parts = _parts(arguments)
    looks: list[Look] = []
    with ExitStack() as stack:
        if arguments.twin is not None:
            held, twin_pid = {**parts, **_markers(arguments.twin)}, arguments.twin
        else:
            twin_marker = os.urandom(32)
            held = {**parts, f"{MARKER}/0": twin_marker[:16], f"{MARKER}/1": twin_marker[16:]}
            twin_pid = stack.enter_context(Twin(Holding(held))).pid
        if arguments.pid is None:
            pid = stack.enter_context(_started(command))
            time.sleep(arguments.interval)
        else:
            pid = arguments.pid
        wanted = Wanted({**parts, **_markers(pid)})
        is_closed = _closed(pid)
        subject = Subject(OWN, pid, wanted, directory, files=True)
        is_real = arguments.twin is not None
        control = Subject(PLAIN, twin_pid, Wanted(held), directory, files=is_real)
        count = arguments.looks or 1
        for number in range(1, count + 1):
            moment = f"look {number}"
            for way in ways if number == count else ways[:1]:
                say(f"{moment}: {way.title}")
                looks.append(way.look(control, moment))
                looks.append(way.look(subject, moment))
            if number < count:
                time.sleep(arguments.interval)
    shown = shlex.join(command).encode("unicode_escape").decode()
    beside = "a twin that holds the samples in the clear"
    if is_real:
        beside = f"process {twin_pid}, which is to hold them in the clear"
    return Outcome(
        f"Process {pid} ({shown or 'which was running'}), beside {beside}.",
        {"pid": pid},
        ways,
        Result(
            resolved(looks, closed=is_closed),
            [],
            [],
            {PLAIN: control.wanted.kinds, OWN: wanted.kinds},
        ),
        _CLEAN,
        OwnRules(real=is_real),
    )


# ---- what is looked for


def _parts(arguments: argparse.Namespace) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    for number, text in enumerate(arguments.text):
        parts |= text_parts("text", text, f"{number}.")
    for number, path in enumerate(arguments.file):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise errors.FileReadError(
                f"The file {str(path)!r} cannot be read: {error.strerror}."
            ).of_system(error.errno, str(path)) from None
        parts |= _windows("file", content, f"{number}.")
    for number, digits in enumerate(arguments.hex):
        try:
            parts |= _windows("hex", bytes.fromhex(digits), f"{number}.")
        except ValueError:
            raise errors.ArgumentError(
                f"--hex {digits!r} is not hexadecimal; write two digits a byte."
            ) from None
    if arguments.weights is not None:
        parts |= _weights(arguments.weights)
    if not parts:
        raise errors.ArgumentError(
            "There is nothing to look for; name it by --text, --file, --hex or --weights, with 16 "
            "bytes or more."
        )
    return parts


def _windows(kind: str, content: bytes, prefix: str) -> dict[str, bytes]:
    """Samples at even places of bytes."""
    places = len(content) // _SAMPLE
    step = max(1, places // _MOST)
    return {
        f"{kind}/{prefix}{at}": content[at : at + _SAMPLE]
        for at in range(0, places * _SAMPLE, step * _SAMPLE)
    }


def _weights(path: Path) -> dict[str, bytes]:
    drawn = random.Random(0)
    parts = {}
    with open_file(path) as file:
        entries = [entry for entry in read_header(file) if entry.nbytes >= _SAMPLE]
        total = sum(entry.nbytes for entry in entries)
        for entry in entries:
            for _ in range(max(4, _MOST * entry.nbytes // total)):
                at = drawn.randrange(entry.nbytes - _SAMPLE + 1)
                content = os.pread(file.fileno(), _SAMPLE, entry.start + at)
                parts[f"weights/{entry.name.replace('/', '.')}+{at}"] = content
    return parts


def _markers(pid: int) -> dict[str, bytes]:
    """What lies in the process whatever it does: its environment and its command line."""
    parts: dict[str, bytes] = {}
    for name in ("environ", "cmdline"):
        try:
            content = Path(f"/proc/{pid}/{name}").read_bytes()
        except PermissionError:
            continue  # nor can its memory be read then
        except OSError as error:
            raise errors.NoProcessError(f"There is no process {pid}.").of_system(
                error.errno
            ) from None
        for at in range(0, len(content) - _SAMPLE, 5):
            if len(parts) < _MARKERS:
                parts[f"{MARKER}/{name}.{at}"] = content[at : at + _SAMPLE]
    return parts | _program(pid)


def _program(pid: int) -> dict[str, bytes]:
    """The beginning of its program's file, which is mapped: some programs overwrite environment and
    command line with a title of theirs."""
    try:
        with open(f"/proc/{pid}/exe", "rb") as file:
            content = file.read(_MARKERS * _SAMPLE * 4)
    except OSError:
        return {}
    pieces = {at: content[at : at + _SAMPLE] for at in range(0, len(content), _SAMPLE)}
    return {
        f"{MARKER}/exe.{at}": piece
        for at, piece in pieces.items()
        if len(piece) == _SAMPLE and len(set(piece)) > _SAMPLE // 2
    }


def _closed(pid: int) -> bool:
    """True for a process of this user that has closed itself: root owns its files in /proc then
    (PR_SET_DUMPABLE of prctl(2))."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith("Uid:"):
                user = int(line.split()[2])
                return user == os.geteuid() and os.stat(f"/proc/{pid}").st_uid != user
    except OSError:
        pass
    return False


@contextmanager
def _started(command: Sequence[str]) -> Iterator[int]:
    """Runs a command for the length of a `with` block."""
    if not command:
        raise errors.ArgumentError("There is no command behind --.")
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=2,  # standard output is for the report
            env={**os.environ, _VARIABLE: os.urandom(32).hex()},
        )
    except OSError as error:
        raise errors.ArgumentError(
            f"The command {command[0]!r} cannot be started: {error.strerror}."
        ) from None
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
