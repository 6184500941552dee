# SPDX-License-Identifier: Apache-2.0
"""Claim 5: a buffer takes its ciphertext and next to nothing else, also while it is built.

Measured in a new process (build_child.py), whose memory nothing else has touched.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from .common import representatives
from .rounds import CheckError, Figure, Plan, Summary, Target

GROUP = "building"

TARGET_PEAK = 16.0  # MiB besides source and ciphertext
TARGET_METADATA = 1.0  # percent of the pages


def size(plan: Plan) -> int:
    """Returns the bytes of the array that the buffer is built from."""
    return (256 if plan.quick else 1024) << 20


def measure(nbytes: int, cipher: str) -> dict[str, float]:
    """Returns what build_child.py reports, in bytes and seconds."""
    child = subprocess.run(
        [sys.executable, "-m", "pyccmem.bench.build_child", str(nbytes), cipher],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        last = (child.stderr.strip() or "no message").splitlines()[-1]
        raise CheckError(f"Building a buffer of {nbytes} bytes failed: {last}")
    return {str(name): float(value) for name, value in json.loads(child.stdout).items()}


def figures(plan: Plan) -> Iterator[Figure]:
    nbytes = size(plan)
    mebibytes = nbytes >> 20
    for cipher in representatives(plan):
        plan.progress(f"{GROUP} from {mebibytes} MiB, {cipher}")
        result = measure(nbytes, cipher)
        if "peak" in result:
            extra = result["peak"] - result["source"] - result["ciphertext"]
            yield Figure(
                id=f"build/{cipher}/peak",
                group=GROUP,
                label=f"{cipher} from {mebibytes} MiB, extra peak",
                value=Summary.of(extra / 2**20),
                unit="MiB",
                reference=(result["source"] + result["ciphertext"]) / 2**20,
                reference_label="source + ciphertext",
                target=Target(TARGET_PEAK, of="value", at_least=False),
            )
        yield Figure(
            id=f"build/{cipher}/metadata",
            group=GROUP,
            label=f"{cipher} metadata",
            value=Summary.of(100 * result["overhead"] / result["ciphertext"]),
            unit="%",
            reference=result["ciphertext"] / 2**20,
            reference_label="MiB of ciphertext",
            target=Target(TARGET_METADATA, of="value", at_least=False),
        )
        yield Figure(
            id=f"build/{cipher}/speed",
            group=GROUP,
            label=f"{cipher} speed, page faults included",
            value=Summary.of(nbytes / result["seconds"] / 1e9),
            unit="GB/s",
        )
