# SPDX-License-Identifier: Apache-2.0
"""`pyccmem info`: shows what this machine offers."""

from __future__ import annotations

import argparse

from ... import __version__
from ...binding import CIPHERS, DEFAULT_CIPHER
from ...cpu import cpu_info
from ...process import stats
from ..output import show_json, show_named

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem info`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--measure", action="store_true", help="also measure the AES unit's ceiling"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints it."""
    info = cpu_info(measure=arguments.measure)
    level = stats()["level"]
    if arguments.json:
        ciphers = {"ciphers": list(CIPHERS), "default_cipher": DEFAULT_CIPHER}
        show_json({"version": __version__, **info, **ciphers, "secret_memory": level})
        return 0
    present = [name for name, there in info["features"].items() if there]
    rows = [
        ("pyccmem", __version__),
        ("processor", info["processor"]),
        ("architecture", info["architecture"]),
        ("features", " ".join(present) or "none of those pyccmem uses"),
        ("tiers", ", ".join(info["tiers"])),
        ("tier in use", info["tier"]),
        (
            "ciphers",
            ", ".join(f"{name} (default)" if name == DEFAULT_CIPHER else name for name in CIPHERS),
        ),
        ("threads", str(info["threads"])),
        ("secret memory", level),
    ]
    if arguments.measure:
        if info["ceiling"] is None:
            rows.append(("AES unit", "not used by the portable tier"))
        else:
            rows += [
                (f"AES unit, {name}", f"{speed / 1e9:.2f} GB/s on one core")
                for name, speed in info["ceiling"].items()
            ]
    rows += [
        (f"host {name.upper()}", f"{found['state']} ({found['evidence']})")
        for name, found in info["memory_encryption"].items()
    ]
    show_named("pyccmem on this machine", rows)
    return 0
