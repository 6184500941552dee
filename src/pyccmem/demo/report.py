# SPDX-License-Identifier: Apache-2.0
"""Prints the demo's results: tables for people, a JSON document for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..console.terminal import table_console
from .measure import Agreement, Timing
from .proof import Finding

__all__ = [
    "Answer",
    "Encrypted",
    "Outcome",
    "Plain",
    "Row",
    "narrator",
    "show",
    "show_answers",
    "table",
]

#: Increased when a field of the JSON document changes its meaning.
SCHEMA = 2

Row = tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The passages nearest to a query: (cosine, name, text)."""

    query: str
    hits: list[tuple[float, str, str]]


@dataclass(frozen=True)
class Plain:
    """The model with plain weights."""

    load_seconds: float
    all_seconds: float
    peak_bytes: int
    control: Finding


@dataclass(frozen=True)
class Encrypted:
    """The model under one cipher."""

    cipher: str
    load_seconds: float
    all_seconds: float
    peak_bytes: int
    peak_plaintext: int
    agreement: Agreement
    findings: list[Finding]  # the first and the last at rest

    def failures(self) -> list[str]:
        """Returns what the run should have shown and did not."""
        failures = []
        if not self.agreement.close:
            failures.append(
                f"the model under {self.cipher} differs from the plain one by "
                f"{self.agreement.max_difference:.2g}, more than rounding explains."
            )
        first, *working, last = self.findings
        failures += [
            f"{finding.moment}: {finding.stored + finding.packed} samples of the weights lie in "
            f"the clear."
            for finding in (first, last)
            if not finding.clean
        ]
        failures += [
            f"{finding.moment}: more of the weights lies in the clear than is in use."
            for finding in working
            if not finding.only_in_use
        ]
        return failures


@dataclass(frozen=True)
class Outcome:
    """All results of the demo."""

    passages: int
    tokens: int
    threads: int
    weight_bytes: int
    answers: list[Answer]
    timings: list[Timing]
    plain: Plain
    encrypted: list[Encrypted]

    def failures(self) -> list[str]:
        """Returns what the demo should have shown and did not."""
        control = self.plain.control
        failures = []
        if not control.found_out:
            failures.append(
                f"only {control.stored} of {control.stored_samples} samples were found in the "
                f"plain process, so the search proves nothing."
            )
        for run in self.encrypted:
            failures += run.failures()
        return failures

    def document(self) -> dict[str, Any]:
        """Returns the results for JSON, in seconds and bytes."""
        return {"schema": SCHEMA, "passed": not self.failures(), **asdict(self)}


def narrator(quiet: bool) -> Callable[[str], None]:
    """Returns a function that says on standard error what is going on and since when, also in a
    file or a pipe: a minute of silence looks like a hang."""
    start = time.monotonic()

    def say(text: str) -> None:
        if not quiet:
            seconds = time.monotonic() - start
            print(f"[{seconds:4.0f} s] {text} ...", file=sys.stderr, flush=True)

    return say


def show(outcome: Outcome, how: str | None = None) -> None:
    """Prints the outcome, as coloured tables on a terminal if rich is installed. `how` says in the
    first line how the weights are held; by default the ciphers are named."""
    ciphers = [run.cipher for run in outcome.encrypted]
    how = how or f"weights plain and under {' and '.join(ciphers)}"
    print(
        f"all-MiniLM-L6-v2, {outcome.passages} passages of {outcome.tokens} tokens, "
        f"{how}, "
        f"{outcome.threads} thread{'s' if outcome.threads > 1 else ''} each"
    )
    show_answers(outcome.answers)
    headings = [heading for cipher in ciphers for heading in (cipher, "ratio")]
    table("What encryption costs", ("", "plain", *headings), _costs(outcome))
    findings = [finding for run in outcome.encrypted for finding in run.findings]
    table(
        "Samples of the weights that another process found in memory",
        ("process", "as in the file", "as packed by the BLAS", "of the tensors"),
        [_seen(finding) for finding in (outcome.plain.control, *findings)],
    )
    for line in _remarks(outcome):
        print(line)


def show_answers(answers: Sequence[Answer]) -> None:
    """Prints a table for each query."""
    for answer in answers:
        table(
            f'"{answer.query}"',
            ("cosine", "passage", ""),
            [(f"{score:.3f}", name, _short(text)) for score, name, text in answer.hits],
        )


def _costs(outcome: Outcome) -> list[Row]:
    plain, runs = outcome.plain, outcome.encrypted
    rows: list[Row] = []
    for timing in outcome.timings:
        each = 1e3 / timing.passages
        many = f"batch of {timing.passages}" if timing.passages > 1 else "one passage"
        row = [f"time a passage, {many}, {timing.tokens} tokens"]
        row.append(f"{timing.plain_seconds * each:.2f} ms")
        for run in runs:
            cost = timing.encrypted[run.cipher]
            row.append(f"{cost.seconds * each:.2f} ms")
            row.append(f"{cost.ratio:.2f} ({cost.lower_ratio:.2f} to {cost.upper_ratio:.2f})")
        rows.append(tuple(row))

    size = outcome.weight_bytes
    row = [f"loading {size / 1e6:.0f} MB", f"{size / 1e9 / plain.load_seconds:.2f} GB/s"]
    for run in runs:
        row.append(f"{size / 1e9 / run.load_seconds:.2f} GB/s")
        row.append(f"{run.load_seconds / plain.load_seconds:.2f}")
    rows.append(tuple(row))
    row = ["peak memory of the process", _mebibytes(plain.peak_bytes, 0)]
    for run in runs:
        row += [_mebibytes(run.peak_bytes, 0), f"{run.peak_bytes / plain.peak_bytes:.2f}"]
    rows.append(tuple(row))
    row = ["most plaintext of weights at once", _mebibytes(size, 1)]
    for run in runs:
        row += [_mebibytes(run.peak_plaintext, 1), ""]
    rows.append(tuple(row))
    return rows


def _mebibytes(nbytes: int, digits: int) -> str:
    return f"{nbytes / 2**20:.{digits}f} MiB"


def _seen(finding: Finding) -> Row:
    tensors = sorted({*finding.stored_tensors, *finding.packed_tensors})
    return (
        finding.moment,
        f"{finding.stored} of {finding.stored_samples}",
        f"{finding.packed} of {finding.packed_samples}",
        ", ".join(name.removeprefix("encoder.") for name in tensors)
        if len(tensors) <= 2
        else f"{len(tensors)} different ones",
    )


def _remarks(outcome: Outcome) -> list[str]:
    lines = [
        f"Agreement of {run.cipher} with the plain model: largest difference "
        f"{run.agreement.max_difference:.2g}, smallest cosine {run.agreement.min_cosine:.7f}."
        for run in outcome.encrypted
    ]
    last = outcome.encrypted[0].findings[-1]
    lines.append(
        f"Read at rest: {last.bytes_scanned / 2**20:.0f} MiB, every mapping but "
        f"{last.unreadable_bytes / 2**20:.1f} MiB that the kernel lets no one read "
        f"({', '.join(_base(name) for name in last.unreadable) or 'none'})."
    )
    if not outcome.failures():
        lines.append(
            "The plain process was found out. In the encrypted ones nothing was found at rest, and "
            "at work only what was in use."
        )
    return lines


def _base(name: str) -> str:
    return name if name.startswith("[") else name.rpartition("/")[2]


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def table(title: str, headings: Row, rows: list[Row]) -> None:
    """Prints a table: by rich on a terminal, if it is installed, else as plain text."""
    console = table_console()
    if console is not None:
        from rich.table import Table
        from rich.text import Text

        drawn = Table(title=Text(title), title_justify="left")
        for heading in headings:
            drawn.add_column(heading)
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)
        return
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    print(f"\n{title}")
    for row in (headings, *rows):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"  {'  '.join(cells)}".rstrip())
