# SPDX-License-Identifier: Apache-2.0
"""Looks for the weights in the memory of the children, from the parent.

There are two kinds of samples: 16 bytes as they lie in the file, and four numbers of one column of
a matrix from four neighbouring rows, as a BLAS packs a matrix for its kernel. The second kind finds
copies that a search for the file's own bytes misses.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import audit, errors
from ..safetensors import Entry, open_file, read_header
from .worker import Passage, Worker

__all__ = ["Finding", "Samples", "look", "samples", "watch"]

#: The number of rows that a BLAS interleaves, or a divisor of it: OpenBLAS packs groups of 4, 8 or
#: 16.
_PACKED_ROWS = 4
#: How many weights the encoder of pyccmem.demo uses at once: two tables whose rows are added.
IN_USE = 2

_STORED_SAMPLES = 16384
_PACKED_SAMPLES = 4096


@dataclass(frozen=True)
class Samples:
    """What to look for."""

    stored: audit.Samples
    packed: audit.Samples


@dataclass(frozen=True)
class Finding:
    """What one search of one process found."""

    moment: str
    stored: int  # samples found, of stored_samples
    stored_samples: int
    stored_tensors: tuple[str, ...]  # that the samples found are from
    packed: int
    packed_samples: int
    packed_tensors: tuple[str, ...]
    bytes_scanned: int
    unreadable_bytes: int
    unreadable: tuple[str, ...]  # names of the mappings not read
    most_tensors: int = IN_USE  # how many tensors may be in use at once

    @property
    def found_out(self) -> bool:
        """True when the weights lie there in the clear, as they must in the control."""
        return self.stored >= 0.9 * self.stored_samples

    @property
    def clean(self) -> bool:
        """True when nothing of the weights was found."""
        return self.stored == 0 and self.packed == 0

    @property
    def only_in_use(self) -> bool:
        """True when no more was found than may be in use: one weight, or rows of the tables that
        are added, and tiles of the last few matrices in buffers of the BLAS."""
        return (
            len(self.stored_tensors) <= self.most_tensors
            and len(self.packed_tensors) <= 4
            and self.stored <= 0.1 * self.stored_samples
            and self.packed <= 0.25 * self.packed_samples
        )


def samples(weights: Path) -> Samples:
    """Makes samples of the model's weights."""
    stored = audit.samples_from_safetensors(weights, _STORED_SAMPLES)
    return Samples(stored, audit.samples_from_parts(_packed(weights), "packed"))


def _packed(weights: Path) -> dict[str, bytes]:
    """Returns groups of numbers as a BLAS packs them, of 16 bytes, so that a sample is exactly one
    group."""
    groups: dict[str, bytes] = {}
    with open_file(weights) as file:
        matrices = [entry for entry in read_header(file) if _is_multiplied(entry)]
        values = sum(entry.nbytes for entry in matrices)
        for entry in matrices:
            rows, columns = entry.shape
            matrix = np.fromfile(
                file, "<f4", rows * columns, offset=entry.start - file.tell()
            ).reshape(rows, columns)
            count = max(1, _PACKED_SAMPLES * entry.nbytes // values)
            for i in range(count):
                place = i * (rows // _PACKED_ROWS * columns) // count
                row, column = place // columns * _PACKED_ROWS, place % columns
                name = f"{entry.name}[{row}:{row + _PACKED_ROWS}, {column}]"
                groups[name] = matrix[row : row + _PACKED_ROWS, column].tobytes()
    return groups


def _is_multiplied(entry: Entry) -> bool:
    """Returns True for matrices that go through a BLAS; not for tables, of which rows are taken."""
    return (
        entry.dtype == "F32"
        and len(entry.shape) == 2
        and entry.shape[0] >= _PACKED_ROWS
        and entry.name.startswith("encoder.")
    )


def look(worker: Worker, wanted: Samples, moment: str, most_tensors: int = IN_USE) -> Finding:
    """Stops the child, searches all its memory, and lets it go on. `most_tensors` of the weights
    can be in use at once."""
    with worker.halted():
        stored = audit.scan(worker.pid, wanted.stored)
        packed = audit.scan(worker.pid, wanted.packed)
    # A process that maps the file of weights holds them in the clear too.
    return Finding(
        moment=moment,
        stored=min(stored.found + stored.found_in_file, stored.samples),  # some are in both
        stored_samples=stored.samples,
        stored_tensors=tuple(stored.tensors),
        packed=packed.found,
        packed_samples=packed.samples,
        packed_tensors=tuple(sorted({name.partition("[")[0] for name in packed.tensors})),
        bytes_scanned=stored.bytes_scanned,
        unreadable_bytes=sum(part.nbytes for part in stored.unreadable),
        unreadable=tuple(sorted({part.mapping for part in stored.unreadable})),
        most_tensors=most_tensors,
    )


def watch(
    worker: Worker,
    wanted: Samples,
    passages: Sequence[Passage],
    moments: int,
    name: str,
    most_tensors: int = IN_USE,
) -> list[Finding]:
    """Searches the child, called `name`, at moments spread over its work on `passages`."""
    _, seconds = worker.embed(passages)
    findings = []
    for number in range(moments):
        halted = 0.0
        worker.ask(passages)
        if not worker.answered(seconds * (number + 0.5) / moments):
            began = time.perf_counter()
            moment = f"{name}, at work, look {number + 1}"
            findings.append(look(worker, wanted, moment, most_tensors))
            halted = time.perf_counter() - began
        seconds = worker.answer()[1] - halted
    if not findings:
        raise errors.DemoError(
            "The model was done before it could be looked at; give it more passages."
        )
    return findings
