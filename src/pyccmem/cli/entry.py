# SPDX-License-Identifier: Apache-2.0
"""Parses the command line and runs the command that it names."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__, errors
from ..console.command import EXIT_ERROR, EXIT_FAILED, carry_out, complain

__all__ = ["COMMANDS", "main", "parser_of"]

#: Each command's module, which is imported only when it is used, and its line in the help.
_MODULES = {
    "info": ("cli.commands.info", "processor, tiers, secret memory, host encryption"),
    "suites": ("cli.commands.suites", "what each cipher suite promises, and how fast it is here"),
    "selftest": ("cli.commands.selftest", "known-answer tests of every usable tier"),
    "keygen": ("cli.commands.keygen", "make a key file"),
    "keys": ("cli.commands.keys", "list, test and use the key services that URIs name"),
    "encrypt": ("cli.commands.encrypt", "seal a safetensors or GGUF file, or a model's directory"),
    "decrypt": ("cli.commands.decrypt", "write a sealed file or directory in the clear"),
    "inspect": ("cli.commands.inspect", "what a sealed file says of itself"),
    "verify": ("cli.commands.verify", "is a sealed file as it was sealed?"),
    "rewrap": ("cli.commands.rewrap", "have a sealed file opened by another key"),
    "rotate": ("cli.commands.rotate", "give all sealed files of a directory another key at once"),
    "bench": ("bench", "how fast, as ratios to what this machine could do"),
    "demo": ("demo", "a real model answers with its weights encrypted in RAM"),
    "demo-torch": ("demo_torch", "the same model in PyTorch, in place and from a sealed directory"),
    "demo-chat": ("demo_chat", "a chat whose memory another process searches while it runs"),
    "posture": ("cli.commands.posture", "what protects this process, or another one, now"),
    "run": ("hardening.command", "start a program that overwrites what it frees"),
    "audit": ("audit", "look for a file's weights in the memory of a process"),
    "attack": ("attack", "try all ways to get at a server's memory, beside an unprotected twin"),
}

#: What each command does, by its name, in the order of the help.
COMMANDS = {name: summary for name, (_, summary) in _MODULES.items()}


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse ignores an output that cannot be written, and would end with status 0.
        if message:
            print(message, end="", file=sys.stderr if file is None else file)


def parser_of(command: str) -> argparse.ArgumentParser:
    """Returns the parser of a command alone, as `pyccmem COMMAND --help` shows it. Raises KeyError
    for a name that COMMANDS does not have."""
    return _parsers(command)[1][command]


def _parsers(
    command: str | None,
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns the parser of all, and those of the commands, of which only `command` has its
    arguments."""
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

    own_parsers: dict[str, argparse.ArgumentParser] = {}
    for name, (module, summary) in _MODULES.items():
        own = own_parsers[name] = commands.add_parser(name, help=summary)
        if command == name:
            found = importlib.import_module(f"pyccmem.{module}")
            found.add_arguments(own)
            own.set_defaults(run=found.run)
    return parser, own_parsers


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
        arguments = _parsers(command)[0].parse_args(words)
        return int(arguments.run(arguments))
    except errors.SelfTestError as error:
        complain(str(error))
        return EXIT_FAILED
    except errors.PyccmemError as error:
        complain(str(error))
        return EXIT_ERROR
