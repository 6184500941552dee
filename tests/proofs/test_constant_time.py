# SPDX-License-Identifier: Apache-2.0
"""The proof of constant time: a few of its subjects, and every control. `make ct` runs it whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import support

RUN = Path(__file__).resolve().parent / "ct" / "run.py"
NOT_INSTALLED = 3


@support.not_sanitized
@support.linux_only
def test_no_branch_and_no_address_depends_on_a_secret() -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--fast"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode == NOT_INSTALLED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
