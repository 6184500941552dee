# SPDX-License-Identifier: Apache-2.0
"""Reports what a scan found, and what it could not read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Hit", "Place", "Report", "Unreadable"]


@dataclass(frozen=True)
class Hit:
    """One place where a sample lies."""

    address: int  #: of its first byte
    mapping: str  #: name in /proc/PID/maps; "[anonymous]" where there is none
    tensor: str  #: that the sample is from
    offset: int  #: of the sample in the tensor's data, in bytes
    in_file: bool = False  #: in a mapping of the weights file itself


@dataclass(frozen=True)
class Unreadable:
    """Addresses that were not read, and why. They may hold samples."""

    start: int
    end: int
    mapping: str
    reason: str

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.end - self.start


@dataclass
class Place:
    """What one mapping held."""

    start: int
    end: int
    mapping: str
    in_file: bool
    occurrences: int = 0
    first: int = 0  #: lowest address of a hit


@dataclass
class Report:
    """The result of one scan. `found` counts samples outside of mappings of the weights file.
    Memory in `unreadable` was not looked at."""

    pid: int  #: 0 for a file
    command: str  #: the short name of the process's program; the path of a file
    weights: str  #: path of the file
    samples: int  #: how many were looked for
    found: int = 0  #: how many of them lie in memory
    occurrences: int = 0  #: in how many places
    found_in_file: int = 0  #: how many lie in mappings of the weights file
    occurrences_in_file: int = 0
    hits: list[Hit] = field(default_factory=list)  #: the first of them, at most `max_hits`
    tensors: dict[str, int] = field(default_factory=dict)  #: samples found, by tensor
    places: list[Place] = field(default_factory=list)  #: mappings with hits, by address
    without_samples: list[str] = field(default_factory=list)  #: tensors without samples
    unreadable: list[Unreadable] = field(default_factory=list)
    bytes_scanned: int = 0
    bytes_untouched: int = 0  #: mapped and never used, so there is nothing to read
    bytes_of_files: int = 0  #: in mappings of files of which only what was written was read
    bytes_vanished: int = 0  #: unmapped by the process before they could be read
    bytes_excluded: int = 0  #: the scanner's own buffer, when it scans its own process
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """True when no sample was found outside of mappings of the weights file."""
        return self.found == 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain lists, dicts, numbers and text; addresses are hexadecimal
        text."""
        return {
            "pid": self.pid,
            "command": self.command,
            "weights": self.weights,
            "samples": self.samples,
            "found": self.found,
            "occurrences": self.occurrences,
            "found_in_file": self.found_in_file,
            "occurrences_in_file": self.occurrences_in_file,
            "hits": [
                {
                    "address": hex(hit.address),
                    "mapping": hit.mapping,
                    "tensor": hit.tensor,
                    "offset": hit.offset,
                    "in_file": hit.in_file,
                }
                for hit in self.hits
            ],
            "hits_left_out": self.occurrences + self.occurrences_in_file - len(self.hits),
            "tensors": self.tensors,
            "places": [
                {
                    "start": hex(place.start),
                    "end": hex(place.end),
                    "mapping": place.mapping,
                    "in_file": place.in_file,
                    "occurrences": place.occurrences,
                    "first": hex(place.first),
                }
                for place in self.places
            ],
            "without_samples": self.without_samples,
            "unreadable": [
                {
                    "start": hex(part.start),
                    "end": hex(part.end),
                    "mapping": part.mapping,
                    "reason": part.reason,
                }
                for part in self.unreadable
            ],
            "bytes_scanned": self.bytes_scanned,
            "bytes_untouched": self.bytes_untouched,
            "bytes_of_files": self.bytes_of_files,
            "bytes_vanished": self.bytes_vanished,
            "bytes_excluded": self.bytes_excluded,
            "seconds": self.seconds,
        }

    def to_json(self) -> str:
        """Returns to_dict() as JSON text."""
        return json.dumps(self.to_dict(), indent=2)
