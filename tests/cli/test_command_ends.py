# SPDX-License-Identifier: Apache-2.0
"""How the command ends when it is interrupted, or its output goes where nothing fits or can be
read; and what it sends to a terminal."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import support

from pyccmem import Key
from pyccmem.cli.commands.keygen import write_key_file
from pyccmem.console.terminal import table_console
from pyccmem.safetensors import save_file

COMMAND = [sys.executable, "-m", "pyccmem"]


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": None}
    environment |= options.pop("env", {})  # type: ignore[arg-type]
    return subprocess.run(
        [*COMMAND, *words],
        env=support.child_environment(**environment),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        **{"stdout": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )


# ---- interrupts --------------------------------------------------------------------------------

#: Interrupts the process when it is about to import a module.
INTERRUPTING = """
import os, signal, sys
class Finder:
    @staticmethod
    def find_spec(name, *rest):
        if name == os.environ.get("INTERRUPT_AT") and name not in seen:
            seen.add(name)
            os.kill(os.getpid(), signal.SIGINT)
seen = set()
sys.meta_path.insert(0, Finder)
"""

MODULES = ["numpy", "pyccmem._native", "pyccmem.cli"]


@pytest.fixture
def interrupting(tmp_path: Path) -> str:
    """PYTHONPATH for a child that is interrupted as it starts."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(INTERRUPTING)
    return os.pathsep.join([str(tmp_path / "path"), support.child_environment()["PYTHONPATH"]])


def interrupted(words: list[str], module: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        env=support.child_environment(PYTHONPATH=path, INTERRUPT_AT=module),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # A shell's background jobs ignore interrupts, and so would this child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    "words, module",
    [
        *((["info"], module) for module in MODULES),
        pytest.param(["demo"], "pyccmem.demo.command", marks=pytest.mark.full),
        pytest.param(["bench"], "pyccmem.bench.command", marks=pytest.mark.full),
        pytest.param(["info"], "pyccmem.errors", marks=pytest.mark.full),
        pytest.param(["info"], "pyccmem.tensor", marks=pytest.mark.full),
    ],
)
def test_interrupted_while_it_starts(words: list[str], module: str, interrupting: str) -> None:
    done = interrupted([*COMMAND, *words], module, interrupting)
    assert done.returncode in (130, -signal.SIGINT), (done.returncode, done.stderr)
    assert done.stdout == done.stderr == ""


def test_interrupted_at_work(interrupting: str) -> None:
    """Then Python answers it, and what was begun is ended in order: the status is ours."""
    words = [*COMMAND, "verify", "x", "--key-file", "y"]
    done = interrupted(words, "pyccmem.cli.commands.verify", interrupting)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


#: A command that makes a directory, waits in it, and says that it has left it; CARRIED says how.
WORKING = """
import os, sys, tempfile, time
from pyccmem.console.command import carry_out
def work():
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), int(sys.argv[2]))  # once more, while it undoes
            time.sleep(0.2)
sys.exit(carry_out(work) if sys.argv[3] == "carried" else work())
"""


def ended_by(
    number: int, folder: Path, how: str, again: int, ignored: int | None = None
) -> tuple[int, list[str]]:
    """Exit status, and what is left in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKING, str(folder), str(int(again)), how],
        env=support.child_environment(),
        stdout=subprocess.PIPE,
        preexec_fn=None if ignored is None else lambda: signal.signal(ignored, signal.SIG_IGN),
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert len(os.listdir(folder)) == 1
        if ignored is not None:
            os.kill(process.pid, ignored)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
        os.kill(process.pid, number)
        return process.wait(30), os.listdir(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end(number: int, again: int, tmp_path: Path) -> None:
    """What was begun is undone, by a first such signal, whichever comes meanwhile."""
    assert ended_by(number, tmp_path, "carried", again) == (128 + number, [])


def test_asked_to_end_without_being_carried_out(tmp_path: Path) -> None:
    """The control: the system ends the process at once, and its directory stays."""
    status, left = ended_by(signal.SIGTERM, tmp_path, "alone", signal.SIGTERM)
    assert status == -signal.SIGTERM and len(left) == 1


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup."""
    found = ended_by(signal.SIGTERM, tmp_path, "carried", signal.SIGTERM, signal.SIGHUP)
    assert found == (128 + signal.SIGTERM, [])


def test_what_a_command_becomes_ends_by_the_signal_itself() -> None:
    """`pyccmem run` hands no handlers on."""
    words = ["sh", "-c", "kill -TERM $$; echo alive"]
    done = run("run", "--debuggable", "--", *words)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("module", ["pyccmem.demo.child", "pyccmem.demo_torch"])
def test_processes_of_the_demos_interrupted_while_they_start(
    module: str, interrupting: str
) -> None:
    done = interrupted([sys.executable, "-m", module, "0"], "pyccmem.tensor", interrupting)
    assert done.returncode == -signal.SIGINT and done.stderr == ""


def test_programs_of_others_get_their_traceback(interrupting: str) -> None:
    """The control: the import is interrupted there, and nobody else's interrupts are swallowed."""
    words = [sys.executable, "-c", "import pyccmem"]
    done = interrupted(words, "pyccmem.tensor", interrupting)
    assert "Traceback" in done.stderr and "KeyboardInterrupt" in done.stderr


# ---- output that goes nowhere ------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a key file and a sealed file."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    with Key.generate() as key:
        write_key_file("key", key)
        save_file({"a": np.arange(9.0)}, "sealed", key=key)
    return tmp_path


WORDS = [["--version"], ["info", "--json"], ["verify", "sealed", "--key-file", "key"]]
MORE_WORDS = [
    ["info"],
    ["selftest"],
    ["--help"],
    ["demo", "--help"],
    ["keygen", "new"],
    ["inspect", "sealed"],
    ["verify", "sealed", "--key-file", "key", "--json"],
    ["rewrap", "sealed", "--key-file", "key", "--new-key-file", "key"],
]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "words",
    [*WORDS, *(pytest.param(words, marks=pytest.mark.full) for words in MORE_WORDS)],
    ids=" ".join,
)
def test_a_full_disk(home: Path, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run(*words, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "pyccmem: The output cannot be written: No space left on device.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_without_a_buffer(home: Path) -> None:
    """argparse itself says nothing of an output that takes nothing."""
    with open("/dev/full", "w") as full:
        done = run("--version", stdout=full, env={"PYTHONUNBUFFERED": "1"})
    assert done.returncode == 2 and "No space left on device" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_nowhere_to_complain(home: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "inspect", "none"],
            env=support.child_environment(),
            stdout=full,
            stderr=full,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2


@pytest.mark.parametrize("which", [">&-", "2>&-", pytest.param(">&- 2>&-", marks=pytest.mark.full)])
def test_streams_that_the_shell_closed(home: Path, which: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$@" {which}', "sh", *COMMAND, "verify", "sealed", "--key-file", "key"],
        env=support.child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert ("whole" in done.stdout) is (which == "2>&-")


def test_a_reader_that_has_enough(home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("info", stdout=writer)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == ""


def test_characters_that_the_output_has_not(home: Path) -> None:
    done = run("keygen", "k\u00e9y", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.startswith("k\\xe9y"), done.stderr


# ---- styles ------------------------------------------------------------------------------------

needs_rich = pytest.mark.skipif(
    importlib.util.find_spec("rich") is None, reason="styles are rich's, which is not installed"
)

#: The environment, whether standard output is a terminal, and whether styles are printed.
STYLES = [
    ({"TERM": "xterm-256color"}, True, True),
    ({"TERM": "xterm-256color", "NO_COLOR": ""}, True, True),
    ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
    ({"TERM": "dumb"}, True, False),
    ({"TERM": "xterm-256color"}, False, False),
    ({"TERM": "xterm-256color", "FORCE_COLOR": "1"}, False, True),
    ({"TERM": "xterm-256color", "FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
]


def printed(words: list[str], changes: dict[str, str], terminal: bool) -> str:
    """What a child prints, to a terminal or to a pipe."""
    main, other = pty.openpty() if terminal else os.pipe()
    child = subprocess.Popen(
        words,
        env=support.child_environment(**{"NO_COLOR": None, "FORCE_COLOR": None, **changes}),
        stdin=subprocess.DEVNULL,
        stdout=other,
        stderr=other,
    )
    os.close(other)
    parts = []
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other side of a terminal is gone
            part = b""
        if not part:
            break
        parts.append(part)
    os.close(main)
    assert child.wait(60) == 0
    return b"".join(parts).decode()


@needs_rich
@pytest.mark.parametrize("changes, terminal, styled", STYLES)
def test_styles(
    changes: dict[str, str], terminal: bool, styled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NO_COLOR": None, "FORCE_COLOR": None, **changes}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(
            name, value
        )
    main, other = pty.openpty() if terminal else os.pipe()
    with open(other, "w") as stream:
        console = table_console(stream)
        assert (console is not None) is styled
        if console is not None:
            console.print("[bold]x[/bold]")
    if styled:
        assert b"\x1b[1mx" in os.read(main, 100)
    os.close(main)


@needs_rich
@pytest.mark.parametrize("changes", [{}, {"NO_COLOR": "1"}], ids=["styled", "NO_COLOR"])
@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "sealed"],
        *(pytest.param([w], marks=pytest.mark.full) for w in ("info", "selftest")),
    ],
    ids=" ".join,
)
def test_styles_of_commands(home: Path, words: list[str], changes: dict[str, str]) -> None:
    text = printed([*COMMAND, *words], {"TERM": "xterm-256color", **changes}, True)
    assert "aegis-128x2" in text and ("\x1b" in text) is not bool(changes)


BAR = """
import sys
from pyccmem.safetensors._progress import reporting
with reporting(None, "file", 1 << 30) as report:
    report(1 << 29, 1 << 30)
"""


@needs_rich
@pytest.mark.parametrize(
    "changes, terminal, bar, styled",
    [
        ({"TERM": "xterm-256color"}, True, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, True, False),
        ({"TERM": "dumb"}, True, False, False),
        ({"TERM": "xterm-256color", "FORCE_COLOR": "1"}, False, False, False),
    ],
)
def test_bars(changes: dict[str, str], terminal: bool, bar: bool, styled: bool) -> None:
    text = printed([sys.executable, "-c", BAR], changes, terminal)
    assert ("file" in text) is bar
    assert bool(re.search(r"\x1b\[[0-9;]*m", text)) is styled
