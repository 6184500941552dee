# SPDX-License-Identifier: Apache-2.0
"""The options of `pyccmem audit`, and the run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from ..console.numbers import whole
from ..console.terminal import bar_console
from .report import Report
from .samples import DEFAULT_SAMPLES, MAX_SAMPLES, samples_from_safetensors
from .scanner import Progress, scan

__all__ = ["EXIT_FOUND", "add_arguments", "run"]

EXIT_FOUND = 1

_MAX_REPORT = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem audit`."""
    parser.description = (
        "Looks for a model's weights in the memory of a running process: thousands of 16-byte "
        "samples of the file, at every byte offset of everything the process has mapped."
    )
    parser.epilog = (
        "Exit status: 0 nothing was found in what could be read; 1 something was found; 2 wrong "
        "usage or another error (no such process, no permission, no safetensors file)."
    )
    parser.add_argument(
        "pid",
        metavar="PID",
        type=whole("the number of a process", 1, 2**31 - 1),
        help="number of the process",
    )
    parser.add_argument(
        "--weights", metavar="FILE", required=True, help="the safetensors file with the weights"
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=whole("a number of samples", 1, MAX_SAMPLES),
        default=DEFAULT_SAMPLES,
        help=f"how many samples to look for ({DEFAULT_SAMPLES})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--max-report",
        metavar="N",
        type=whole("a number of places", 0, 1_000_000),
        default=_MAX_REPORT,
        help=f"describe at most N places where something was found ({_MAX_REPORT})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Scans and prints. Returns the exit status; raises what scan() raises."""
    samples = samples_from_safetensors(arguments.weights, arguments.samples)
    with _progress_bar() as progress:
        report = scan(arguments.pid, samples, progress, max_hits=arguments.max_report)
    if arguments.json:
        print(report.to_json())
    else:
        for line in _text(report, arguments.max_report):
            print(line)
    return 0 if report.clean else EXIT_FOUND


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """Shows a bar on standard error, if that is a terminal and rich is installed."""
    try:
        console = bar_console()
    except ImportError:
        console = None
    if console is None:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("reading memory"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _size(nbytes: int) -> str:
    if nbytes < 1024:
        return f"{nbytes} bytes"
    power = min((nbytes.bit_length() - 1) // 10, 4)
    return f"{nbytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def _plain(text: str) -> str:
    """Returns a name from outside, without characters that control a terminal."""
    return "".join(
        c if c.isprintable() and c.isascii() else c.encode("unicode_escape").decode() for c in text
    )


def _text(report: Report, most: int) -> Iterator[str]:
    percent = 100 * report.found / report.samples
    speed = report.bytes_scanned / report.seconds / 1e9
    rows = [
        ("process", f"{report.pid} ({_plain(report.command)})"),
        ("weights", _plain(report.weights)),
        ("samples", f"{report.samples} of 16 bytes each"),
        (
            "memory read",
            f"{_size(report.bytes_scanned)} in {report.seconds:.2f} s ({speed:.1f} GB/s)",
        ),
        ("never used", f"{_size(report.bytes_untouched)}, nothing to read"),
    ]
    if report.bytes_vanished:
        rows.append(("unmapped", f"{_size(report.bytes_vanished)} before it could be read"))
    if report.bytes_excluded:
        rows.append(("left out", f"{_size(report.bytes_excluded)}, the scanner's own buffer"))
    rows.append(
        ("found", f"{report.found} samples ({percent:.2f} %) in {report.occurrences} places")
    )
    if report.found_in_file:
        rows.append(
            (
                "mapped file",
                f"{report.found_in_file} samples in mappings of the weights file itself, which are "
                f"the file and do not count as found",
            )
        )
    yield "pyccmem audit"
    for name, value in rows:
        yield f"  {name:<11}  {value}"
    yield from _list(
        "tensors without samples (small, constant or periodic)",
        [_plain(name) for name in report.without_samples],
        most,
    )
    yield from _list(
        "not readable, so not known to be clean",
        [
            f"{part.start:#x}-{part.end:#x}  {_size(part.nbytes)}  {_plain(part.mapping)}: "
            f"{part.reason}"
            for part in report.unreadable
        ],
        max(most, _MAX_REPORT),
    )
    yield from _list(
        "mappings that hold samples",
        [
            f"{place.start:#x}-{place.end:#x}  {place.occurrences} places, from {place.first:#x}  "
            f"{_plain(place.mapping)}{' (the file itself)' if place.in_file else ''}"
            for place in report.places
        ],
        most,
    )
    yield from _list(
        "samples found",
        [
            f"{hit.address:#x}  {_plain(hit.tensor)} + {hit.offset}  in {_plain(hit.mapping)}"
            for hit in report.hits
        ],
        most,
        report.occurrences + report.occurrences_in_file,
    )


def _list(title: str, lines: list[str], most: int, count: int | None = None) -> Iterator[str]:
    count = len(lines) if count is None else count
    if not count:
        return
    yield f"{title}:"
    for line in lines[:most]:
        yield f"  {line}"
    if count > min(most, len(lines)):
        yield f"  ... and {count - min(most, len(lines))} more"
