# SPDX-License-Identifier: Apache-2.0
"""Looks for the weights in the memory of the children, from the parent.

There are two kinds of samples: 16 bytes as they lie in the file, and four numbers of one column of
a matrix from four neighbouring rows, as a BLAS packs a matrix for its kernel. The second kind finds
copies that a search for the file's own bytes misses.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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


@contextmanager
def samples(weights: Path) -> Iterator[Samples]:
    """Gives samples of the model's weights."""
    stored = audit.samples_from_safetensors(weights, _STORED_SAMPLES)
    with open("pyccmem-demo-samples", "wb", opener=_in_memory) as file:
        _write_packed(weights, file)
        file.flush()
        packed = audit.samples_from_safetensors(f"/proc/self/fd/{file.fileno()}", _PACKED_SAMPLES)
        yield Samples(stored, packed)


def _in_memory(name: str, _: int) -> int:
    """Opens a file that lies only in memory, for open()."""
    return os.memfd_create(name, os.MFD_CLOEXEC)


def _write_packed(weights: Path, out: BinaryIO) -> None:
    """Writes a safetensors file of groups of numbers as a BLAS packs them.

    Each group is a tensor of 16 bytes, so that a sample is exactly one group.
    """
    width = _PACKED_ROWS * 4
    header: dict[str, object] = {}
    groups: list[bytes] = []
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
                at = len(groups) * width
                header[f"{entry.name}[{row}:{row + _PACKED_ROWS}, {column}]"] = {
                    "dtype": "F32",
                    "shape": [_PACKED_ROWS],
                    "data_offsets": [at, at + width],
                }
                groups.append(matrix[row : row + _PACKED_ROWS, column].tobytes())
    text = json.dumps(header).encode()
    out.write(len(text).to_bytes(8, "little") + text + b"".join(groups))


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
