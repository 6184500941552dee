# SPDX-License-Identifier: Apache-2.0
"""The options of `pyccmem attack`, and the run."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import resource
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import errors
from ..demo import command as demo
from ..demo.report import narrator
from . import own, report
from .job import Sizes
from .outcome import Outcome
from .scratch import private_directory
from .trial import Plan, attack
from .ways import WAYS

__all__ = ["EXIT_FOUND", "EXIT_VOID", "PACKAGES", "add_arguments", "run"]

#: By which the server is started.
_LAUNCHER = "pyccmem run --"

EXIT_FOUND = 1
EXIT_VOID = 2

_CLEAN = (
    "Of the protected server nothing was found of weights, keys and cache at any moment but what "
    "was in use while it computed, and nothing at all before and after the request."
)

#: The packages that the servers need.
PACKAGES = ("torch", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem attack`."""
    parser.description = (
        "Tries every way to get at a process's memory that this machine allows: /proc/PID/mem, "
        "process_vm_readv, gcore -a, a core by SIGABRT, a forked child, swap, an over-read from "
        "inside, pages put back, flipped bits. Attacks a small HTTP server with a model whose "
        "weights and key-value caches are encrypted, or a process of your own (--pid, or -- "
        "COMMAND), beside an unprotected twin that must be found out. Dumps go to a private "
        "directory and are wiped."
    )
    parser.epilog = (
        "Exit status: 0 nothing was found that should not be there; 1 something was found, or a "
        "change was not noticed; 2 the run is void (the twin was not found out), wrong usage or "
        "another error; 130 interrupted, 143 ended by SIGTERM."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plot", metavar="FILE.png", type=Path, help="draw hits over time (needs matplotlib)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer ways and looks: half a minute")
    parser.add_argument(
        "--way",
        choices=list(WAYS),
        action="append",
        help=f"only this one; repeatable ({', '.join(WAYS)})",
    )
    parser.add_argument(
        "--leave-out", choices=list(WAYS), action="append", default=[], help="not this one"
    )
    parser.add_argument(
        "--directory", metavar="DIR", help="where the private directory for dumps is made"
    )
    parser.add_argument(
        "--looks",
        metavar="N",
        type=demo.count(0, 1000),
        help="looks through /proc/PID/mem while it works (8 at the server, 1 at your own process)",
    )
    server = parser.add_argument_group("the server")
    server.add_argument(
        "--no-guard", action="store_true", help="start it without `pyccmem run`: see what is left"
    )
    server.add_argument(
        "--launcher",
        metavar="COMMAND",
        default=_LAUNCHER,
        help=f"what it is started by ({_LAUNCHER})",
    )
    demo.add_counts(
        server.add_argument,
        (
            ("--requests", 4, 1, 1000, "requests; the last is the one that is watched"),
            ("--clients", 2, 1, 64, "clients at once"),
            ("--threads", 1, 1, 64, "threads of each process"),
            ("--layers", 4, 2, 200, "layers of the model"),
            ("--width", 256, 64, 16384, "size of its hidden states"),
            ("--heads", 4, 1, 128, "heads of keys and values"),
            ("--head-size", 64, 32, 256, "elements of a head"),
            ("--prompt", 200, 16, 100_000, "tokens of a prompt"),
            ("--answer", 24, 16, 10_000, "tokens of an answer"),
        ),
    )
    server.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type of weights and cache (float32)",
    )
    own.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Attacks, and prints what was seen. Returns the exit status."""
    demo.require_proc("The attacks need")
    if arguments.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise errors.MissingPackageError(
            "--plot needs matplotlib, which is not installed; pip install 'pyccmem[bench]'."
        )
    names = arguments.way or list(WAYS)
    if arguments.quick and not arguments.way:
        names = [name for name in names if name not in ("gcore", "swap")]
    names = [name for name in WAYS if name in names and name not in arguments.leave_out]
    if not names:
        raise errors.ArgumentError("No way is left; leave out fewer.")
    ways = [WAYS[name]() for name in names]
    if arguments.pid is not None or arguments.command_line:
        say = narrator(arguments.json)
        with private_directory(arguments.directory) as directory:
            outcome = own.attack(arguments, ways, directory, say)
        return conclude(outcome, arguments)
    demo.require(PACKAGES, "transformers")
    sizes = Sizes(
        **{
            name: getattr(arguments, name)
            for name in ("layers", "width", "heads", "head_size", "prompt", "answer", "dtype")
        }
    )
    looks = arguments.looks
    if looks is None:
        looks = 3 if arguments.quick else 8
    plan = Plan(
        sizes=sizes,
        ways=ways,
        launcher=() if arguments.no_guard else tuple(shlex.split(arguments.launcher)),
        requests=arguments.requests,
        clients=arguments.clients,
        looks=looks,
        threads=arguments.threads,
        everywhere=bool(arguments.way),
    )
    say = narrator(arguments.json)
    with private_directory(arguments.directory) as directory, cores():
        result = attack(plan, directory, say)
    return conclude(Outcome(_title(plan), _settings(plan), ways, result, _CLEAN), arguments)


def _title(plan: Plan) -> str:
    sizes = plan.sizes
    guard = "not guarded"
    if plan.launcher:
        guard = f"started by {shlex.join(plan.launcher).removesuffix(' --')}"
    return (
        f"An HTTP server with a Llama of {sizes.layers} layers and random weights of "
        f"{sizes.dtype}: weights and key-value caches encrypted, {guard}; and an unprotected twin. "
        f"{plan.requests} requests of {sizes.prompt} tokens by {plan.clients} clients, answers of "
        f"{sizes.answer}."
    )


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "sizes": asdict(plan.sizes),
        "launcher": list(plan.launcher),
        "requests": plan.requests,
        "clients": plan.clients,
    }


def conclude(outcome: Outcome, arguments: argparse.Namespace) -> int:
    """Prints and draws the outcome as the options ask. Returns the exit status."""
    if arguments.plot is not None:
        from .plot import draw

        draw(outcome, arguments.plot)
    if not arguments.json:
        report.show(outcome)
    else:
        print(json.dumps(outcome.document(), indent=2))
        for reason in outcome.voids():
            print(f"pyccmem: void: {reason}", file=sys.stderr)
        for failure in outcome.failures():
            print(f"pyccmem: {failure}", file=sys.stderr)
    if outcome.voids():
        return EXIT_VOID
    return EXIT_FOUND if outcome.failures() else 0


@contextlib.contextmanager
def cores() -> Iterator[None]:
    """Lets processes that are started in a `with` block dump core, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
