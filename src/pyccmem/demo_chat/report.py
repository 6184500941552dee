# SPDX-License-Identifier: Apache-2.0
"""Says what the chat has shown: tables for people, a JSON document for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..demo.report import Row, table
from .job import ENCRYPTED, PLAIN, Sizes
from .proof import Count, Finding

__all__ = ["Agreement", "Outcome", "Speed", "show"]

#: Increased when a field of the JSON document changes its meaning.
SCHEMA = 1

#: Of the smallest cosine between two rows, plain and encrypted: what rounding explains.
_CLOSE = {"float32": 0.99999, "bfloat16": 0.99}


@dataclass(frozen=True)
class Agreement:
    """How far both ways compute the same."""

    min_cosine: float  # of rows of keys and values of the first question
    same_tokens: int  # of the whole conversation
    tokens: int


@dataclass(frozen=True)
class Speed:
    """Seconds of one thing in both ways. A ratio is between times of the same round."""

    name: str
    plain_seconds: float  # medians
    encrypted_seconds: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float


@dataclass(frozen=True)
class Outcome:
    """All results."""

    sizes: Sizes
    threads: int
    agreement: Agreement
    speeds: list[Speed]
    findings: dict[str, list[Finding]]  # by way

    def failures(self) -> list[str]:
        """Returns what should have been shown and was not."""
        failures = []
        if not self.agreement.min_cosine >= _CLOSE[self.sizes.dtype]:
            failures.append(
                f"keys and values differ by a cosine of {self.agreement.min_cosine:.6f}, more than "
                f"rounding explains."
            )
        for finding in self.findings[PLAIN]:
            if finding.cached and "freed" not in finding.moment and not finding.found_out:
                failures.append(
                    f"plain, {finding.moment}: not all samples were found, so the search proves "
                    f"nothing."
                )
        for finding in self.findings[ENCRYPTED]:
            name = f"{ENCRYPTED}, {finding.moment}"
            if not finding.clean:
                failures.append(
                    f"{name}: {finding.prompt.found + finding.answers.found} samples of the cache "
                    f"lie in the clear."
                )
            if finding.moment == "opened on purpose":
                if not finding.opened.all:
                    failures.append(
                        f"{name}: not all samples were found, so the search proves nothing."
                    )
            elif finding.opened.found > finding.opened.samples // 10:
                failures.append(f"{name}: more of the cache is open than an attention needs.")
        return failures

    def document(self) -> dict[str, Any]:
        """Returns the results for JSON, in seconds and bytes."""
        return {"schema": SCHEMA, "passed": not self.failures(), **asdict(self)}


def show(outcome: Outcome) -> None:
    """Prints the outcome, as coloured tables on a terminal if rich is installed."""
    sizes = outcome.sizes
    print(
        f"A Llama with {sizes.parameters / 1e6:.0f} million random weights of {sizes.dtype}: "
        f"{sizes.layers} layers, {sizes.heads} heads of keys and values of {sizes.head_size}; a "
        f"chat of {sizes.turns} turns and {sizes.tokens} tokens, {sizes.prompt} of them the first "
        f"question; "
        f"{outcome.threads} thread{'s' if outcome.threads > 1 else ''} each"
    )
    table(
        "What encrypting weights and cache costs",
        ("", "plain", "encrypted", "ratio of times"),
        [_cost(speed, sizes) for speed in outcome.speeds],
    )
    table(
        "Samples of keys and values that another process found in memory",
        (
            "process",
            "cached",
            "the first question",
            "what followed",
            "open",
            "in work",
            "K before rotation",
        ),
        [_seen(way, finding) for way, findings in outcome.findings.items() for finding in findings],
    )
    agreement = outcome.agreement
    print(
        f"Agreement: {agreement.same_tokens} of {agreement.tokens} tokens are the same, smallest "
        f"cosine of rows of keys and values {agreement.min_cosine:.7f}."
    )
    if not outcome.failures():
        print(
            "The plain process was found out. Of the encrypted cache nothing was found but what "
            "was open, and nothing after erase(). Activations of torch's own operators, and the "
            "text, are not part of it: the last column is one of them."
        )


def _cost(speed: Speed, sizes: Sizes) -> Row:
    tokens = sizes.prompt if "question" in speed.name else 1
    return (
        speed.name,
        f"{tokens / speed.plain_seconds:.1f} tokens/s",
        f"{tokens / speed.encrypted_seconds:.1f} tokens/s",
        f"{speed.ratio:.2f} ({speed.lowest_ratio:.2f} to {speed.highest_ratio:.2f})",
    )


def _seen(way: str, finding: Finding) -> Row:
    return (
        f"{way}, {finding.moment}",
        f"{finding.cached}",
        *map(_count, (finding.prompt, finding.answers)),
        _count(finding.opened) if way == ENCRYPTED else "",
        _count(finding.in_work),
        _count(finding.before),
    )


def _count(count: Count) -> str:
    return f"{count.found} of {count.samples}" if count.samples else "-"
