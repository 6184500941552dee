# SPDX-License-Identifier: Apache-2.0
"""How the suite runs its own tests: side by side, but some alone; long forms last."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import ROOT, TESTS
from turns import Turns


def taken(path: Path) -> bool:
    """True when somebody holds this file's lock."""
    number = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


def order_of_entry(folder: Path, kind: type[Turns]) -> list[str]:
    """A test is running, one waits to be alone, then a third one comes."""
    entered: list[str] = []

    def enter(name: str, alone: bool) -> None:
        with kind(folder).turn(alone=alone):
            entered.append(name)

    with kind(folder).turn(alone=False):
        single = threading.Thread(target=enter, args=("alone", True))
        single.start()
        if kind is Turns:
            while not taken(folder / "gate"):
                time.sleep(0.001)
        third = threading.Thread(target=enter, args=("third", False))
        third.start()
        if kind is not Turns:
            third.join()
        entered.append("first ends")
    single.join()
    third.join()
    return entered


class WithoutGate(Turns):
    """Each has a gate of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.close(self.gate)
        self.gate = os.open(folder / f"gate {id(self)}", os.O_RDWR | os.O_CREAT)


def test_one_that_waits_to_be_alone_is_not_overtaken(tmp_path: Path) -> None:
    assert order_of_entry(tmp_path, Turns) == ["first ends", "alone", "third"]


def test_without_the_gate_it_is(tmp_path: Path) -> None:
    """The control of the test above."""
    assert order_of_entry(tmp_path, WithoutGate) == ["third", "first ends", "alone"]


@pytest.mark.parametrize(("seconds", "outcome"), [("0", "1 passed, 1 skipped"), ("60", "2 passed")])
def test_long_forms_come_last_while_there_is_time(
    tmp_path: Path, seconds: str, outcome: str
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "seen = []\n"
        "@pytest.mark.full\n"
        "def test_long(): assert seen == ['short']\n"
        "def test_short(): seen.append('short')\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "conftest"),
            *("-c", str(ROOT / "pyproject.toml"), "-m", "", f"--full-for={seconds}"),
            str(tmp_path),
        ],
        env=os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'support'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0 and outcome in done.stdout, done.stdout + done.stderr
