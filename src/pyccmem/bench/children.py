# SPDX-License-Identifier: Apache-2.0
"""Runs a part of the benchmarks in a new process, whose libraries read their numbers of threads
from its environment, and whose memory nothing else has touched."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from . import instructions
from .linear import THREAD_VARIABLES
from .rounds import CheckError


def child(module: str, what: str, threads: int, *words: object) -> Any:
    """Returns what `python -m pyccmem.bench.MODULE WORDS...` prints as its last line, which is
    JSON. `what` is measured there, for the message of the CheckError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"pyccmem.bench.{module}", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **instructions.environment(),
            **dict.fromkeys(THREAD_VARIABLES, str(threads)),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise CheckError(f"Measuring {what} ({words[0]}) failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])
