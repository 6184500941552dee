# SPDX-License-Identifier: Apache-2.0
"""`pyccmem attack`: the twin is found out in every way, the protected server is not; what is left
out of its protection is found; and what cannot be tried is not called clean."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import support
from secret_search import WITHOUT_MEMFD_SECRET
from support import linux_only, not_sanitized

from pyccmem import cli
from pyccmem.attack import command
from pyccmem.attack.job import PLAIN, PROTECTED
from pyccmem.attack.look import READ, REFUSED, UNTRIED
from pyccmem.attack.ways import WAYS

needs_torch = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in (*command.PACKAGES, "pyccmem.hardening.command")
    ),
    reason="needs torch, transformers and pyccmem run",
)
pytestmark = [linux_only, not_sanitized]

SMALL = "--layers 2 --width 128 --heads 2 --prompt 96 --answer 16 --requests 3 --looks 1".split()


def attack(*words: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, document, what was said on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "pyccmem", "attack", "--json", *words],
        env=support.child_environment(**environment),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    document = json.loads(done.stdout) if done.stdout else {}
    return done.returncode, document, done.stderr


def counts(document: dict[str, Any], process: str, moment: str) -> dict[str, int]:
    """The most of each kind that a way has found."""
    most: dict[str, int] = {}
    for look in document["looks"]:
        if look["process"] == process and look["moment"] == moment and look["status"] == READ:
            for kind, count in look["found"].items():
                most[kind] = max(count, most.get(kind, 0))
    return most


# ---- the server ----


@needs_torch
def test_the_server() -> None:
    """Nothing of it is found once the request has ended. The twin, in the same run, is."""
    status, found, said = attack(*SMALL, "--way", "mem", "--way", "over-read")
    assert status == 0, said
    assert found["void"] == found["failures"] == []
    wanted = found["wanted"][PROTECTED]
    assert wanted["kv"] > 200 and wanted["keys"] == 17 and wanted["prompt"] > 50
    twin = counts(found, PLAIN, "during")
    for kind in ("weights", "keys", "kv", "unrotated", "hidden", "prompt", "ids", "answer ids"):
        assert twin[kind] == found["wanted"][PLAIN][kind] > 0
    assert counts(found, PLAIN, "after")["prompt"] > 0
    for moment in ("before", "after", "erased"):
        assert counts(found, PROTECTED, moment) == {}
    during = counts(found, PROTECTED, "during")
    assert not {"weights", "keys", "kv"} & set(during)
    statuses = {look["status"] for look in found["looks"] if look["process"] == PROTECTED}
    if REFUSED not in statuses:  # this user may read what has closed itself
        assert during["prompt"] > 0
        noticed = [c["noticed"] for c in found["changes"] if c["process"] == PROTECTED]
        assert noticed == [8, 64]


@needs_torch
@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_requests_with_and_without_guard(dtype: str) -> None:
    """20 requests of 8 clients. Without guard their text and tokens stay, in memory that was
    freed; with it nothing does."""
    words = ["--requests", "20", "--clients", "8", "--dtype", dtype, "--looks", "4"]
    status, found, said = attack(*words, "--no-guard", "--way", "mem")
    assert status == 1 and found["void"] == [], said
    left = counts(found, PROTECTED, "after")
    assert left["prompt"] > 0 and left["ids"] > 0 and left["earlier"] > 0
    assert not {"weights", "keys", "kv"} & set(left)
    status, found, said = attack(*words)
    assert status == 0, said
    for moment in ("before", "after", "erased"):
        assert counts(found, PROTECTED, moment) == {}
    assert found["wanted"][PROTECTED]["earlier"] > 1000
    tried = {look["way"] for look in found["looks"] if look["status"] == READ}
    assert {"mem", "readv", "fork", "over-read"} <= tried


@needs_torch
@pytest.mark.full
def test_every_way() -> None:
    """Each is tried, or it is said why not; root's ways too."""
    status, found, said = attack(*SMALL, "--looks", "0")
    assert status == 0, said
    tried = {look["way"] for look in found["looks"] if look["status"] == READ}
    untried = {line.split(":")[0] for line in found["untried"]}
    assert tried | untried >= set(WAYS) and {"mem", "readv", "fork", "over-read"} <= tried
    if os.geteuid() == 0 and shutil.which("gcore"):
        assert {"gcore", "swap"} <= tried
    aborts = [look for look in found["looks"] if look["way"] == "abort"]
    if "abort" not in untried:
        assert {look["status"] for look in aborts if look["process"] == PLAIN} == {READ}
        assert {look["status"] for look in aborts if look["process"] != PLAIN} == {REFUSED}


@needs_torch
@pytest.mark.full
@pytest.mark.parametrize("variable", ["LD_PRELOAD", "PYTHONMALLOC"])
def test_a_part_of_guard_switched_off(variable: str) -> None:
    """What overwrites freed blocks, or small objects of Python: text of requests that have ended is
    found again."""
    launcher = f"pyccmem run -- env -u {variable} --"
    status, found, said = attack(*SMALL, "--way", "mem", "--launcher", launcher)
    assert status == 1 and found["void"] == [], said
    left = counts(found, PROTECTED, "after")
    assert left and set(left) <= {"prompt", "ids", "answer", "answer ids", "earlier", "hidden"}


@needs_torch
@pytest.mark.full
def test_a_guard_that_lets_itself_be_dumped() -> None:
    """--debuggable: the core that its twin gives is given by the server too."""
    launcher = "pyccmem run --debuggable --"
    status, found, said = attack(*SMALL, "--way", "abort", "--launcher", launcher)
    if found["untried"]:
        pytest.skip(found["untried"][0])
    assert status == 0, said  # an ended request is not in it
    assert {look["status"] for look in found["looks"]} == {READ}


# ---- a process of one's own ----

TEXT = "a wizened text that lies in just this process"

HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
if sys.argv[1:]:
    text = bytes(byte ^ 1 for byte in bytes.fromhex(sys.argv[1])).decode()
print("ready", flush=True)
time.sleep(600)
"""


def holding(text: str) -> list[str]:
    """A command whose process has a text, and whose command line does not."""
    masked = bytes(byte ^ 1 for byte in text.encode()).hex() if text else ""
    return [sys.executable, "-c", HOLD, *([masked] if masked else [])]


QUICK = ("--way", "mem", "--way", "readv", "--interval", "0.5")


def test_a_command_of_ones_own() -> None:
    status, found, said = attack("--text", TEXT, *QUICK, "--looks", "2", "--", *holding(TEXT))
    assert status == 1 and found["void"] == [], said
    statuses = [(look["way"], look["status"], look["found"]["text"]) for look in found["looks"]]
    assert statuses == [("mem", READ, 4)] * 4 + [("readv", READ, 4)] * 2
    assert "4 of 4 text were found by mem, readv" in said
    status, found, said = attack("--text", TEXT, *QUICK, "--", *holding(""))
    assert status == 0 and found["passed"], said
    assert [look["found"].get("text", 0) for look in found["looks"]] == [4, 0, 4, 0]


def test_a_twin_of_ones_own() -> None:
    """Another process is the control, and a run beside one that shows nothing is void."""
    with running(holding(TEXT)) as open_one, running(holding("")) as closed:
        words = ["--text", TEXT, *QUICK]
        status, found, said = attack(*words, "--pid", str(closed), "--twin", str(open_one))
        assert status == 0 and found["passed"], said
        assert [look["found"].get("text", 0) for look in found["looks"]] == [4, 0, 4, 0]
        status, found, said = attack(*words, "--pid", str(open_one), "--twin", str(closed))
        assert status == 2 and "only 0 of 4 text were found" in said


def test_other_things_to_look_for(tmp_path: Path) -> None:
    """Bytes of a file, in hexadecimal, and of weights; by the number of a running process."""
    from safetensors.numpy import save_file

    secret = os.urandom(48)
    (tmp_path / "secret").write_bytes(secret)
    import numpy as np

    save_file({"w": np.random.default_rng(0).standard_normal(64)}, tmp_path / "w.safetensors")
    words = ["--file", str(tmp_path / "secret"), "--hex", secret[::-1].hex()]
    words += ["--weights", str(tmp_path / "w.safetensors")]
    with running(holding("")) as pid:
        status, found, said = attack(*words, *QUICK, "--pid", str(pid))
    assert status == 0, said
    assert found["wanted"]["attacked"]["file"] == found["wanted"]["attacked"]["hex"] == 3
    assert found["wanted"]["attacked"]["weights"] > 3
    for look in found["looks"]:
        assert bool(look["found"]) == (look["process"] == PLAIN)


@contextmanager
def running(words: list[str]) -> Iterator[int]:
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_wrong_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["--pid", "1"], "nothing to look for"),
        (["--text", "short", "--pid", "1"], "nothing to look for"),
        (["--hex", "xy", "--pid", "1"], "not hexadecimal"),
        (["--file", str(tmp_path / "none"), "--pid", "1"], "cannot be read"),
        (["--text", TEXT, "--pid", str(2**31 - 1)], "no process"),
        (["--text", TEXT, "--pid", "1", "--", "true"], "not both"),
        (["--text", TEXT, "--pid", "1", "--twin", "1"], "names the process of --pid"),
        (["--text", TEXT, "--", "/no/such/command"], "cannot be started"),
        (["--way", "mem", "--leave-out", "mem"], "No way is left"),
        (["--text", TEXT, *QUICK, "--", "true"], "no process"),
    ):
        assert cli.main(["attack", *words]) == 2, words
        assert says in capfd.readouterr().err, words


# ---- controls: what is broken, or not allowed, is noticed ----


def test_a_twin_that_holds_nothing() -> None:
    """The run is void."""
    script = (
        "from pyccmem.attack import own\n"
        "class Nothing(own.Twin):\n"
        "    def __init__(self, held):\n"
        "        parts = {k: v for k, v in held.parts.items() if k.startswith('marker')}\n"
        "        super().__init__(own.Holding(parts))\n"
        "own.Twin = Nothing\n"
        "import sys\n"
        "from pyccmem.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "attack", "--text", TEXT, *QUICK, "--", *holding(TEXT)],
        env=support.child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2 and "VOID" in done.stdout, done.stderr


#: A container's usual rules: neither ptrace nor what reads other processes.
FORBIDDEN = (
    WITHOUT_MEMFD_SECRET
    + """
forbid(310, 1)
forbid(101, 1)
import sys
from pyccmem.cli import main
sys.exit(main(sys.argv[1:]))
"""
)


def test_what_is_forbidden_is_not_called_clean() -> None:
    """process_vm_readv and ptrace are refused, as in many containers."""
    words = ["--json", "--text", TEXT, "--way", "readv", "--way", "gcore", "--interval", "0.5"]
    for more, expected in (([], 2), (["--way", "mem"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", FORBIDDEN, "attack", *words, *more, "--", *holding("")],
            env=support.child_environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode == 77:
            pytest.skip("no seccomp filter may be installed here")
        assert done.returncode == expected, done.stderr
        found = json.loads(done.stdout)
        for look in found["looks"]:
            assert look["status"] == (READ if look["way"] == "mem" else UNTRIED), look
        assert [line.split(":")[0] for line in found["untried"]] == ["readv", "gcore"]
        assert bool(found["void"]) == (expected == 2)


def test_a_process_that_closed_itself() -> None:
    """A process of the same user that is not dumpable keeps that user out; its twin does not. Root
    reads it all the same."""
    close = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
    words = [sys.executable, "-c", close + HOLD]
    status, found, said = attack("--text", TEXT, *QUICK, "--", *words)
    statuses = {look["status"] for look in found["looks"] if look["process"] != PLAIN}
    assert status == 0, said
    assert statuses == ({READ} if os.geteuid() == 0 else {REFUSED})


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """No child, no dump, no directory, no swap file, at whatever moment it comes: Ctrl-C or a
    terminal that closes, which reach all processes, or SIGTERM to the command alone. SIGKILL, which
    nobody can answer, shows that there is a directory (and would leave a swap file in use)."""
    with open("/proc/swaps", encoding="ascii") as file:
        swaps = file.read()
    words = ["--text", TEXT, "--interval", "0.1", "--looks", "3", "--directory", str(tmp_path)]
    words += ["--way", "mem", "--way", "gcore"]
    for seconds, number, to_all in (
        (1.0, signal.SIGINT, True),
        (2.0, signal.SIGTERM, False),
        (2.5, signal.SIGHUP, True),
        (3.0, signal.SIGINT, True),
        (3.5, signal.SIGTERM, True),
        (0.0, signal.SIGKILL, True),
    ):
        swap = [] if number == signal.SIGKILL else ["--way", "swap"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pyccmem", "attack", *words, *swap, "--", *holding(TEXT)],
            env=support.child_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        time.sleep(seconds)
        while number == signal.SIGKILL and process.poll() is None and not os.listdir(tmp_path):
            time.sleep(0.01)
        (os.killpg if to_all else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=60)
        if number == signal.SIGKILL:
            assert os.listdir(tmp_path) != []
            break
        # It may be done before the last of them.
        assert process.returncode in (128 + number, 1) and b"Traceback" not in said, said
        assert os.listdir(tmp_path) == []
        assert not session(process.pid)
        with open("/proc/swaps", encoding="ascii") as file:
            assert file.read() == swaps


def session(number: int) -> list[int]:
    """The processes of a session that are left."""
    left = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX" and int(fields[3]) == number:
                left.append(int(name))
    return left
