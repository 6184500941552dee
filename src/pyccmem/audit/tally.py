# SPDX-License-Identifier: Apache-2.0
"""Enters into a report what a search finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import errors
from .report import Hit, Place, Report
from .samples import Samples
from .search import Found

__all__ = ["Tally", "check_samples"]


def check_samples(samples: Any) -> None:
    """Raises ArgumentTypeError for what are no samples."""
    if not isinstance(samples, Samples):
        raise errors.ArgumentTypeError(
            f"samples must come from samples_from_safetensors() or samples_from_parts(), not be "
            f"{type(samples).__name__}."
        )


class Tally:
    """Counts, and describes the first `max_hits` places. conclude() ends it."""

    def __init__(self, report: Report, samples: Samples, max_hits: int) -> None:
        self._report, self._samples, self._max_hits = report, samples, max_hits
        self._places: dict[tuple[int, str], Place] = {}
        self._found = np.zeros(len(samples.usable()), dtype=np.bool_)
        self._found_in_file = self._found.copy()

    def note(self, where: Place, found: Found) -> None:
        """Enters samples that were found in one mapping."""
        report, count = self._report, len(found.samples)
        (self._found_in_file if where.in_file else self._found)[found.samples] = True
        if where.in_file:
            report.occurrences_in_file += count
        else:
            report.occurrences += count
        first = int(found.addresses.min())
        place = self._places.setdefault((where.start, where.mapping), where)
        place.end = where.end
        place.first = min(place.first, first) if place.occurrences else first
        place.occurrences += count
        room = self._max_hits - len(report.hits)
        for address, number in zip(found.addresses[:room], found.samples[:room], strict=True):
            tensor, offset = self._samples.origin(int(number))
            report.hits.append(Hit(int(address), place.mapping, tensor, offset, where.in_file))

    def conclude(self) -> None:
        """Completes the report."""
        report = self._report
        report.found = int(np.count_nonzero(self._found))
        report.found_in_file = int(np.count_nonzero(self._found_in_file))
        report.tensors = self._samples.per_tensor(self._found)
        report.places = [self._places[at] for at in sorted(self._places)]
