# SPDX-License-Identifier: Apache-2.0
"""The options of `pyccmem bench`, and the run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from .. import measure
from ..console.command import EXIT_ERROR
from ..console.numbers import whole
from . import (
    baseline,
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
    vectors,
    vllm_engines,
)
from .rounds import CheckError, Figure, Plan

EXIT_WRONG_RESULT = 1

#: With --check: a claim is worse than it was recorded.
EXIT_WORSE = 3

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
    "vectors": vectors.figures,
}

#: Of claims that compare with what need not be installed: sentences about what is missing.
MISSING: dict[str, Callable[[], Sequence[str]]] = {
    "linear": linear.missing,
    "int8": int8.missing,
    "torch": torch_models.missing,
    "quantized-models": quantized_models.missing,
    "quantized": block_products.missing,
    "cache": cache.missing,
    "llama": llama.missing,
    "vllm": vllm_engines.missing,
    "vectors": vectors.missing,
}


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
        "reached; 1 a result was wrong; 2 wrong usage or another error; 3 with --check, a claim is "
        "worse than it was."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--save", metavar="FILE.json", type=Path, help="write the JSON here too")
    parser.add_argument(
        "--check",
        metavar="FILE.json",
        type=Path,
        help="compare with a run saved on this machine: which claims moved beyond noise",
    )
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw it (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, less memory, rougher")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=whole("a number of rounds", 3, 10_000),
        help="rounds to take medians of (15; 5 with --quick)",
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
    try:
        recorded = (
            None if arguments.check is None else baseline.read(arguments.check, report.SCHEMA)
        )
    except baseline.BaselineError as error:
        return _complain(str(error), EXIT_ERROR)
    progress = report.Progress()
    quick = arguments.quick or (recorded is not None and recorded["quick"])
    usual = 5 if quick else 15
    plan = Plan(
        rounds=arguments.rounds or (usual if recorded is None else recorded["rounds"]),
        quick=quick,
        ciphers=tuple(
            name for name in measure.SUITES if name in (arguments.cipher or measure.SUITES)
        ),
        progress=progress,
    )
    usually = CLAIMS if recorded is None else baseline.claims_of(recorded, CLAIMS)
    claims = [name for name in CLAIMS if name in (arguments.only or usually)]
    began = datetime.now(timezone.utc)
    comparison = None
    try:
        if recorded is not None:  # told before minutes are spent
            baseline.must_fit(recorded, report.document(plan, [], (), began))
        found = {name: list(CLAIMS[name](plan)) for name in claims}
        figures = [figure for name in claims for figure in found[name]]
        document = report.document(plan, figures, _missing(claims), began)
        if recorded is not None:
            comparison = baseline.compare(recorded, document)
            ids = {name: [figure.id for figure in found[name]] for name in claims}
            moved = baseline.moved_claims(comparison, ids)
            if moved:
                again = [figure for name in moved for figure in CLAIMS[name](plan)]
                second = baseline.compare(recorded, report.document(plan, again, (), began))
                comparison = baseline.confirmed(comparison, second)
            document["check"] = baseline.as_json(comparison)
    except CheckError as error:
        progress.clear()
        return _complain(str(error), EXIT_WRONG_RESULT)
    except baseline.BaselineError as error:
        return _complain(str(error), EXIT_ERROR)
    except MemoryError:
        progress.clear()
        return _complain("there is not enough memory here; --quick needs less.", EXIT_ERROR)
    finally:
        progress.clear()
    text = json.dumps(document, indent=2)
    if arguments.json:
        print(text)
    else:
        report.show(document, figures)
        if comparison is not None:
            print("", *baseline.sentences(comparison), sep="\n")
    try:
        if arguments.save is not None:
            arguments.save.write_text(text + "\n", encoding="utf-8")
        if arguments.plot is not None:
            from .plot import draw

            draw(document, figures, arguments.plot)
    except (OSError, ValueError) as error:
        # matplotlib raises ValueError for a file name whose ending it does not know.
        return _complain(f"the result cannot be saved: {error}", EXIT_ERROR)
    return EXIT_WORSE if comparison is not None and comparison.worse else 0


def _missing(claims: Sequence[str]) -> tuple[str, ...]:
    """Returns sentences about what could not be compared with."""
    missing = tuple(peers.find().missing) if {"pages", "bulk"} & {*claims} else ()
    for name, sentences in MISSING.items():
        if name in claims:
            missing = (*missing, *sentences())
    return missing


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
