# SPDX-License-Identifier: Apache-2.0
"""`pyccmem suites`: what each cipher suite promises, which standards define it, and how fast it is
here."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ... import measure
from ...binding import DEFAULT_CIPHER, SUITES
from ...cpu import cpu_info
from ..output import show_json, show_table

__all__ = ["add_arguments", "run"]

#: 32 pages sealed or opened from one place to another: within the smallest L2 of the processors
#: that this is for.
_BYTES = 128 << 10

#: Seconds that a measurement takes.
_SECONDS = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem suites`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--no-speed", action="store_true", help="do not measure how fast each suite is"
    )


def _speed(cipher: str, operation: str) -> float:
    """Returns bytes a second of one core, pages in L2, the best of three."""
    source, out = bytearray(os.urandom(_BYTES)), bytearray(_BYTES)

    def seconds(repeats: int) -> float:
        return measure.pages(None, cipher, operation, source, out, repeats)

    repeats = max(int(_SECONDS / max(seconds(1), 1e-9)), 1)
    return _BYTES * repeats / min(seconds(repeats) for _ in range(3))


def _limit(name: str) -> str:
    """How much one key should seal."""
    blocks = SUITES[name].blocks_log2
    return f"2^{blocks} blocks of 16 bytes" if blocks else "2^48 pages"


def _found(name: str, speed: bool) -> dict[str, Any]:
    suite = SUITES[name]
    found: dict[str, Any] = {
        "name": name,
        "default": name == DEFAULT_CIPHER,
        "key_bits": suite.key_bits,
        "tag_bits": 8 * suite.tag_size,
        "notices_changes": bool(suite.tag_size),
        "freshness": bool(suite.tag_size),
        "limit": _limit(name),
        "standards": suite.standards,
    }
    if speed:
        found |= {f"{verb}_bytes_per_second": _speed(name, verb) for verb in measure.OPERATIONS}
    return found


def run(arguments: argparse.Namespace) -> int:
    """Prints it."""
    suites = [_found(name, not arguments.no_speed) for name in SUITES]
    if arguments.json:
        show_json({"tier": cpu_info()["tier"], "suites": suites, "certified": False})
        return 0
    heads = ["suite", "key", "changes", "earlier states", "a key seals at most", "standards"]
    rows = [
        [
            f"{found['name']} (default)" if found["default"] else found["name"],
            f"{found['key_bits']} bits",
            f"noticed, tag of {found['tag_bits']} bits" if found["tag_bits"] else "not noticed",
            "noticed if fresh or frozen" if found["freshness"] else "not noticed",
            found["limit"],
            found["standards"],
        ]
        for found in suites
    ]
    if not arguments.no_speed:
        heads.append(f"seal, open ({cpu_info()['tier']})")
        for row, found in zip(rows, suites, strict=True):
            speeds = (found[f"{verb}_bytes_per_second"] / 1e9 for verb in ("seal", "open"))
            row.append(", ".join(f"{speed:.1f}" for speed in speeds) + " GB/s")
    show_table(heads, rows)
    print(
        "An algorithm is not a certified module: pyccmem has no certificate by FIPS 140-3 or "
        "GM/T 0028."
    )
    return 0
