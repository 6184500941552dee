# SPDX-License-Identifier: Apache-2.0
"""The command `pyccmem`: what this machine offers, whether it works, how fast it is; keys and
sealed files; a demo on a real model; a search for weights in the memory of a process.

Exit status: 0 success; 1 a self-test or a benchmark's check of its results failed, the demo did not
show what it should, a sealed file was changed, or the audit found something; 2 wrong usage, or any
other error of pyccmem; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__, errors
from .binding import CIPHERS, DEFAULT_CIPHER
from .console.command import EXIT_ERROR, carry_out, complain
from .console.terminal import table_console
from .cpu import cpu_info
from .process import selftest, stats

__all__ = ["main"]

EXIT_FAILED = 1

Rows = list[tuple[str, str]]


def _show(title: str, rows: Rows) -> None:
    """A table of two columns: by rich on a terminal, if it is installed, else plain text."""
    console = table_console()
    if console is not None:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(value))
        console.print(table)
        return
    print(title)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def _show_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _info(arguments: argparse.Namespace) -> int:
    info = cpu_info(measure=arguments.measure)
    level = stats()["level"]
    if arguments.json:
        ciphers = {"ciphers": list(CIPHERS), "default_cipher": DEFAULT_CIPHER}
        _show_json({"version": __version__, **info, **ciphers, "secret_memory": level})
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
    _show("pyccmem on this machine", rows)
    return 0


def _selftest(arguments: argparse.Namespace) -> int:
    failure = None
    try:
        result = selftest()
    except errors.SelfTestError as error:
        failure = str(error)
        result = error.result
    if arguments.json:
        _show_json({"passed": failure is None, **result})
    else:
        rows = [(f"tier {name}", outcome) for name, outcome in result["tiers"].items()]
        rows += [
            (f"{name}, tier {result['tier']}", outcome)
            for name, outcome in result["buffers"].items()
        ]
        _show("pyccmem self-test", rows)
    if failure is not None:
        print(f"pyccmem: {failure}", file=sys.stderr)
        return EXIT_FAILED
    return 0


#: Commands with a module of their own, imported only when asked for: they import more than the
#: other commands need.
_MODULES = {
    "keygen": ("sealed_commands.keygen", "make a key file"),
    "encrypt": ("sealed_commands.encrypt", "seal a safetensors file or a model's directory"),
    "decrypt": ("sealed_commands.decrypt", "write a sealed file or directory in the clear"),
    "inspect": ("sealed_commands.inspect", "what a sealed file says of itself"),
    "verify": ("sealed_commands.verify", "is a sealed file as it was sealed?"),
    "rewrap": ("sealed_commands.rewrap", "have a sealed file opened by another key"),
    "bench": ("bench", "how fast, as ratios to what this machine could do"),
    "demo": ("demo", "a real model answers with its weights encrypted in RAM"),
    "demo-torch": ("demo_torch", "the same model in PyTorch, in place and from a sealed directory"),
    "audit": ("audit", "look for a file's weights in the memory of a process"),
}


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own drops the error of an output that takes nothing, and the status is 0 then.
        if message:
            print(message, end="", file=sys.stderr if file is None else file)


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pyccmem",
        description="Memory that holds tensors and buffers as ciphertext while a program runs.",
        epilog="`pyccmem COMMAND --help` tells more of a command. To seal a model: `pyccmem keygen "
        "my.key`, then `pyccmem encrypt MODEL SEALED --key-file my.key`. "
        "Exit status: 0 success, 1 a test failed, a sealed file was changed or the audit found "
        "something, 2 wrong usage or another error, 130 interrupted. Environment: PYCCMEM_TIER, "
        "PYCCMEM_NUM_THREADS, PYCCMEM_FAULT, NO_COLOR, FORCE_COLOR.",
    )
    parser.add_argument("--version", action="version", version=f"pyccmem {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parser.set_defaults(run=lambda _: _no_command(parser))

    info = commands.add_parser("info", help="processor, tiers, secret memory, host encryption")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.add_argument("--measure", action="store_true", help="also measure the AES unit's ceiling")
    info.set_defaults(run=_info)

    test = commands.add_parser("selftest", help="known-answer tests of every usable tier")
    test.add_argument("--json", action="store_true", help="print JSON")
    test.set_defaults(run=_selftest)

    for name, (module, summary) in _MODULES.items():
        own = commands.add_parser(name, help=summary)
        if command == name:
            found = importlib.import_module(f"pyccmem.{module}")
            found.add_arguments(own)
            own.set_defaults(run=found.run)
    return parser


def _no_command(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return EXIT_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with `argv` (without the program's name) and returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return carry_out(lambda: _run(words))


def _run(words: list[str]) -> int:
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        arguments = _parser(command).parse_args(words)
        return int(arguments.run(arguments))
    except errors.SelfTestError as error:
        complain(str(error))
        return EXIT_FAILED
    except errors.PyccmemError as error:
        complain(str(error))
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
