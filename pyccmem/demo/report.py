# SPDX-License-Identifier: Apache-2.0
"""What the demo prints: tables for people, a document for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .measure import Agreement, Timing
from .proof import Finding

__all__ = ["Answer", "Outcome", "narrator", "show"]

#: Changes when a field of the JSON document changes its meaning.
SCHEMA = 1

Row = tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The passages nearest to a query: (cosine, name, text)."""

    query: str
    hits: list[tuple[float, str, str]]


@dataclass(frozen=True)
class Outcome:
    """All that the demo found. Pairs are (plain, encrypted)."""

    passages: int
    tokens: int
    cipher: str
    threads: int
    weight_bytes: int
    load_seconds: tuple[float, float]
    all_seconds: tuple[float, float]
    agreement: Agreement
    answers: list[Answer]
    timings: list[Timing]
    peak_bytes: tuple[int, int]
    peak_plaintext: int
    control: Finding
    findings: list[Finding]  # of the encrypted process: the first and the last at rest

    def failures(self) -> list[str]:
        """What the demo was to show and did not."""
        failures = []
        if not self.agreement.close:
            failures.append(
                f"the encrypted model differs from the plain one by "
                f"{self.agreement.max_difference:.2g}, more than rounding explains."
            )
        if not self.control.found_out:
            failures.append(
                f"only {self.control.stored} of {self.control.stored_samples} samples were found "
                f"in the plain process, so the search proves nothing."
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

    def document(self) -> dict[str, Any]:
        """For JSON: seconds and bytes."""
        return {"schema": SCHEMA, "passed": not self.failures(), **asdict(self)}


def narrator(quiet: bool) -> Callable[[str], None]:
    """Says on standard error what is going on, where a person may be waiting."""

    def say(text: str) -> None:
        if not quiet and sys.stderr.isatty():
            print(f"{text} ...", file=sys.stderr, flush=True)

    return say


def show(outcome: Outcome) -> None:
    """Prints the outcome, as coloured tables on a terminal that rich is installed for."""
    print(
        f"all-MiniLM-L6-v2, {outcome.passages} passages of {outcome.tokens} tokens, "
        f"every weight of the encrypted run under {outcome.cipher}, "
        f"{outcome.threads} thread{'s' if outcome.threads > 1 else ''} each"
    )
    for answer in outcome.answers:
        _table(
            f'"{answer.query}"',
            ("cosine", "passage", ""),
            [(f"{score:.3f}", name, _short(text)) for score, name, text in answer.hits],
        )
    _table("What encryption costs", ("", "plain", "encrypted", "ratio"), _costs(outcome))
    _table(
        "Samples of the weights that a second process found in memory",
        ("process", "as in the file", "as packed by the BLAS", "of the tensors"),
        [_seen(finding) for finding in (outcome.control, *outcome.findings)],
    )
    for line in _remarks(outcome):
        print(line)


def _costs(outcome: Outcome) -> list[Row]:
    rows: list[Row] = []
    for timing in outcome.timings:
        each = 1e3 / timing.passages
        many = f"batch of {timing.passages}" if timing.passages > 1 else "one passage"
        rows.append(
            (
                f"time a passage, {many}, {timing.tokens} tokens",
                f"{timing.plain_seconds * each:.2f} ms",
                f"{timing.encrypted_seconds * each:.2f} ms",
                f"{timing.ratio:.2f} ({timing.lower_ratio:.2f} to {timing.upper_ratio:.2f})",
            )
        )
    plain, encrypted = outcome.load_seconds
    size = outcome.weight_bytes / 1e9
    rows.append(
        (
            f"loading {outcome.weight_bytes / 1e6:.0f} MB",
            f"{size / plain:.2f} GB/s",
            f"{size / encrypted:.2f} GB/s",
            f"{encrypted / plain:.2f}",
        )
    )
    plain_peak, encrypted_peak = outcome.peak_bytes
    rows.append(
        (
            "peak memory of the process",
            f"{plain_peak / 2**20:.0f} MiB",
            f"{encrypted_peak / 2**20:.0f} MiB",
            f"{encrypted_peak / plain_peak:.2f}",
        )
    )
    rows.append(
        (
            "most plaintext of weights at once",
            f"{outcome.weight_bytes / 2**20:.1f} MiB",
            f"{outcome.peak_plaintext / 2**20:.1f} MiB",
            "",
        )
    )
    return rows


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
    last = outcome.findings[-1]
    agreement = outcome.agreement
    lines = [
        f"Agreement with the plain model: largest difference {agreement.max_difference:.2g}, "
        f"smallest cosine {agreement.min_cosine:.7f}.",
        f"Read at rest: {last.bytes_scanned / 2**20:.0f} MiB, every mapping but "
        f"{last.unreadable_bytes / 2**20:.1f} MiB that the kernel lets no one read "
        f"({', '.join(_base(name) for name in last.unreadable) or 'none'}).",
    ]
    if not outcome.failures():
        lines.append(
            "The plain process was found out. In the encrypted one nothing was found at rest, and "
            "at work only what was in use."
        )
    return lines


def _base(name: str) -> str:
    return name if name.startswith("[") else name.rpartition("/")[2]


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def _table(title: str, headings: Row, rows: list[Row]) -> None:
    """A table: by rich on a terminal, if it is installed, else plain text."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            table = Table(title=Text(title), title_justify="left")
            for heading in headings:
                table.add_column(heading)
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            Console().print(table)
            return
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    print(f"\n{title}")
    for row in (headings, *rows):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"  {'  '.join(cells)}".rstrip())
