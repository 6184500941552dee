# SPDX-License-Identifier: Apache-2.0
"""The options of `pyccmem bench`, and the run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from .. import measure
from ..console.command import EXIT_ERROR
from . import (
    block_products,
    build,
    bulk,
    cache,
    gemm,
    guard,
    int8,
    linear,
    llama,
    mapping,
    pages,
    peers,
    quantized_models,
    random64,
    report,
    rows,
    threads,
    torch_models,
    vllm_engines,
)
from .rounds import CheckError, Figure, Plan

EXIT_WRONG_RESULT = 1

#: The claims by their names for --only, in the order of the table.
CLAIMS: dict[str, Callable[[Plan], Iterator[Figure]]] = {
    "pages": pages.figures,
    "bulk": bulk.figures,
    "threads": threads.figures,
    "random64": random64.figures,
    "rows": rows.figures,
    "linear": linear.figures,
    "int8": int8.figures,
    "gemm": gemm.figures,
    "mapping": mapping.figures,
    "quantized": block_products.figures,
    "build": build.figures,
    "torch": torch_models.figures,
    "quantized-models": quantized_models.figures,
    "cache": cache.figures,
    "guard": guard.figures,
    "llama": llama.figures,
    "vllm": vllm_engines.figures,
}


def _rounds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 3 <= int(text) <= 10000):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of rounds; use a whole number from 3 to 10000"
        )
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem bench`."""
    parser.description = (
        "Measures how fast pyccmem is, as ratios to what this machine can do in the same run: "
        "medians over rounds in which subject and reference take turns. Every result is checked "
        "before it is timed. Takes some ten minutes and 4 GiB of memory, with --quick "
        "a few minutes and about 1 GiB."
    )
    parser.epilog = (
        "PYCCMEM_TIER chooses the tier. Exit status: 0 measured, whether or not the targets were "
        "reached; 1 a result was wrong; 2 wrong usage or another error."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--save", metavar="FILE.json", type=Path, help="write the JSON here too")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw it (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, less memory, rougher")
    parser.add_argument(
        "--rounds", metavar="N", type=_rounds, help="rounds to take medians of (15; 5 with --quick)"
    )
    parser.add_argument(
        "--cipher", action="append", choices=list(measure.SUITES), help="only this one; repeatable"
    )
    parser.add_argument(
        "--only", action="append", choices=list(CLAIMS), help="only this claim; repeatable"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints, saves. Returns the exit status."""
    problem = _cannot_finish(arguments)
    if problem:
        return _complain(problem, EXIT_ERROR)
    progress = report.Progress()
    plan = Plan(
        rounds=arguments.rounds or (5 if arguments.quick else 15),
        quick=arguments.quick,
        ciphers=tuple(
            name for name in measure.SUITES if name in (arguments.cipher or measure.SUITES)
        ),
        progress=progress,
    )
    claims = [name for name in CLAIMS if name in (arguments.only or CLAIMS)]
    began = datetime.now(timezone.utc)
    figures: list[Figure] = []
    try:
        for name in claims:
            figures += CLAIMS[name](plan)
        missing = peers.find().missing if {"pages", "bulk"} & {*claims} else ()
        if "linear" in claims:
            missing = (*missing, *linear.missing())
        if "int8" in claims:
            missing = (*missing, *int8.missing())
        if "torch" in claims:
            missing = (*missing, *torch_models.missing())
        if "quantized-models" in claims:
            missing = (*missing, *quantized_models.missing())
        if "quantized" in claims:
            missing = (*missing, *block_products.missing())
        if "cache" in claims:
            missing = (*missing, *cache.missing())
        if "llama" in claims:
            missing = (*missing, *llama.missing())
        if "vllm" in claims:
            missing = (*missing, *vllm_engines.missing())
    except CheckError as error:
        progress.clear()
        return _complain(str(error), EXIT_WRONG_RESULT)
    except MemoryError:
        progress.clear()
        return _complain("there is not enough memory here; --quick needs less.", EXIT_ERROR)
    finally:
        progress.clear()
    document = report.document(plan, figures, missing, began)
    text = json.dumps(document, indent=2)
    if arguments.json:
        print(text)
    else:
        report.show(document, figures)
    try:
        if arguments.save is not None:
            arguments.save.write_text(text + "\n", encoding="utf-8")
        if arguments.plot is not None:
            from .plot import draw

            draw(document, figures, arguments.plot)
    except (OSError, ValueError) as error:
        # matplotlib raises ValueError for a file name whose ending it does not know.
        return _complain(f"the result cannot be saved: {error}", EXIT_ERROR)
    return 0


def _complain(sentence: str, status: int) -> int:
    print(f"pyccmem: {sentence}", file=sys.stderr)
    return status


def _cannot_finish(arguments: argparse.Namespace) -> str | None:
    """Returns what would make the run fail at its end, so that it can be told at once."""
    if arguments.plot is not None and importlib.util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib; install it with: pip install 'pyccmem[bench]'"
    for path in (arguments.save, arguments.plot):
        if path is not None and not path.resolve().parent.is_dir():
            return f"{path} cannot be written, because its folder does not exist."
    return None
