# SPDX-License-Identifier: Apache-2.0
"""Chooses 16-byte samples of a file to look for, and remembers where in the file they are from."""

from __future__ import annotations

import json
import os
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import Call, check, ffi, lib
from ..binding.arguments import integer
from ..binding.owned import SAMPLES
from ..files.safetensors_header import Entry, open_file, read_header
from .scratch import Scratch

__all__ = [
    "DEFAULT_SAMPLES",
    "MAX_SAMPLES",
    "SAMPLE_BYTES",
    "Samples",
    "samples_from_parts",
    "samples_from_safetensors",
]

SAMPLE_BYTES = 16
DEFAULT_SAMPLES = 32768
MAX_SAMPLES = 1_000_000

#: Every tensor gets this many samples, if there are enough, before the rest are shared out by size.
_LEAST_PER_TENSOR = 4
#: How many times refused samples are replaced by others.
_ROUNDS = 6
#: No more samples are taken from a tensor of which fewer than one in this many is usable.
_WORTHWHILE = 20

_WINDOW = 1 << 20  # bytes of the file read at once
_GAP = 1 << 14  # samples at most this many bytes apart are read in one system call


class Samples:
    """Samples of a file's tensors, ready to be looked for. Made by samples_from_safetensors().

    len() is the number of samples that can be found. They are kept masked in native memory; no
    method returns them, and they cannot be pickled.
    """

    def __init__(self, path: str, file: BinaryIO, tensors: Sequence[Entry], capacity: int) -> None:
        out = SAMPLES.cell()
        check(lib.ccmem_samples_new(capacity, out), Call("the samples"))
        self.native: Any = SAMPLES.own(out)
        #: The path of the file, as it was given.
        self.path = path
        status = os.fstat(file.fileno())
        #: st_dev and st_ino of the file, by which its mappings are recognized.
        self.file_id = (status.st_dev, status.st_ino)
        #: Names of all tensors of the file that are not empty, in the order of their data.
        self.tensors = tuple(entry.name for entry in tensors)
        self._starts = array("Q", (entry.start for entry in tensors))
        self._positions = array("Q")  # in the file, by sample
        self._tensor = array("Q")  # index into tensors, by sample

    def __len__(self) -> int:
        return int(np.count_nonzero(self.usable()))

    def __repr__(self) -> str:
        return f"<{len(self)} samples of {len(self.tensors)} tensors of {self.path!r}>"

    def __reduce__(self) -> NoReturn:
        raise errors.NotPicklableError(
            "Samples cannot be pickled or copied; make them in the process that needs them."
        )

    def usable(self) -> npt.NDArray[np.bool_]:
        """For each sample that was taken, whether it can be found: False if it occurred twice."""
        count = len(self._positions)
        return np.fromiter(
            (lib.ccmem_samples_usable(self.native, sample) for sample in range(count)),
            dtype=np.bool_,
            count=count,
        )

    def origin(self, sample: int) -> tuple[str, int]:
        """Returns the tensor that a sample is from, and its offset in bytes within the tensor's
        data."""
        tensor = self._tensor[sample]
        return self.tensors[tensor], self._positions[sample] - self._starts[tensor]

    def per_tensor(self, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Returns how many of the chosen samples each tensor has; tensors without any are left
        out."""
        owners = np.frombuffer(self._tensor, dtype=np.uint64)[chosen].astype(np.intp)
        counts = np.bincount(owners, minlength=len(self.tensors))
        return {self.tensors[i]: int(counts[i]) for i in np.flatnonzero(counts)}

    def without_samples(self) -> list[str]:
        """Tensors without samples: constants, zeros, or less than 16 bytes."""
        covered = self.per_tensor(self.usable())
        return [name for name in self.tensors if name not in covered]

    def take(self, file: BinaryIO, scratch: Scratch, wanted: list[tuple[int, int]]) -> list[int]:
        """Reads samples at (position in the file, tensor), in ascending order, and keeps those
        that are telling and new; the tensor of each one kept."""
        kept: list[int] = []
        for window in _windows(wanted):
            begin, length = window[0][0], window[-1][0] + SAMPLE_BYTES - window[0][0]
            _read(file, scratch, begin, length, self.path)
            offsets = array("Q", (position - begin for position, _ in window))
            taken = bytearray(len(window))
            check(
                lib.ccmem_samples_add(
                    self.native,
                    scratch.native,
                    length,
                    ffi.from_buffer("uint64_t[]", offsets),
                    len(window),
                    ffi.from_buffer("uint8_t[]", taken, require_writable=True),
                ),
                Call("the samples"),
            )
            for (position, tensor), was_taken in zip(window, taken, strict=True):
                if was_taken:
                    self._positions.append(position)
                    self._tensor.append(tensor)
                    kept.append(tensor)
        return kept


def _windows(wanted: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cuts a sorted list into parts, each of which is read at once."""
    window: list[tuple[int, int]] = []
    for item in wanted:
        if window and (
            item[0] - window[-1][0] > _GAP or item[0] + SAMPLE_BYTES - window[0][0] > _WINDOW
        ):
            yield window
            window = []
        window.append(item)
    if window:
        yield window


def _read(file: BinaryIO, scratch: Scratch, begin: int, length: int, path: str) -> None:
    done = 0
    while done < length:
        try:
            got = scratch.read(file.fileno(), begin + done, done, length - done)
        except OSError as error:
            raise errors.FileReadError(
                f"The file {path!r} cannot be read: {error.strerror}."
            ) from None
        if got == 0:
            raise errors.FileReadError(
                f"The file {path!r} became shorter while it was read; audit it when nothing writes "
                f"to it."
            )
        done += got


@dataclass
class _Source:
    """A tensor as a source of samples."""

    start: int
    places: int  # how many offsets a sample can begin at
    asked: int = 0
    kept: int = 0

    def worthwhile(self) -> bool:
        return self.asked < self.places and (
            self.asked < 2 * _WORTHWHILE or self.kept * _WORTHWHILE >= self.asked
        )


def _shares(sources: list[_Source], count: int) -> list[int]:
    """Shares out `count` samples by size, after a few for each tensor if there are enough."""
    least = min(_LEAST_PER_TENSOR, count // len(sources))
    rest = count - least * len(sources)
    total = sum(source.places for source in sources)
    shares, before, reached = [], 0, 0
    for source in sources:
        reached += source.places
        until = (rest * reached + total // 2) // total
        shares.append(min(least + until - before, source.places))
        before = until
    return shares


def _pick(source: _Source, count: int, used: set[int], rng: random.Random) -> Iterator[int]:
    """Yields up to `count` unused positions, one in each of `count` equal parts of the tensor."""
    for i in range(count):
        low, high = source.places * i // count, source.places * (i + 1) // count
        position = source.start + low + int(rng.random() * (high - low))
        if position not in used:
            used.add(position)
            yield position


def samples_from_safetensors(
    path: str | os.PathLike[str], count: int = DEFAULT_SAMPLES, seed: int = 0
) -> Samples:
    """Takes `count` (1 to MAX_SAMPLES) samples of 16 bytes from the tensors of a safetensors file.

    They are spread over all tensors in proportion to their sizes, at least four of each if there
    are enough, at any byte offset. The same `seed` and file give the same samples. A sample is
    refused if it has fewer than 8 different bytes, or fewer than 4 in 8 neighbouring ones, or holds
    numbers of 1, 2 or 4 bytes at equal steps, or occurs twice among the samples: zeros, constants,
    counters and alphabets lie in the memory of any process. Refused samples are replaced by others,
    so a file with enough distinctive bytes gives `count`.

    The file is read in parts into memory that is wiped, and the samples are kept masked, so that
    this process does not itself hold what it looks for.

    Raises FileReadError, FileFormatError (not a safetensors file, or one without distinctive
    bytes), ArgumentError, ArgumentTypeError.
    """
    count, seed = integer("count", count), integer("seed", seed)
    if not 1 <= count <= MAX_SAMPLES:
        raise errors.ArgumentError(f"count is {count}; it must be from 1 to {MAX_SAMPLES}.")
    name = os.fsdecode(path)
    with open_file(path) as file, Scratch(_WINDOW) as scratch:
        tensors = [entry for entry in read_header(file) if entry.nbytes > 0]
        samples = Samples(name, file, tensors, capacity=count + count // 4 + 16)
        sources = [_Source(t.start, max(0, t.nbytes - SAMPLE_BYTES + 1)) for t in tensors]
        rng = random.Random(seed)
        used: set[int] = set()
        missing = count
        for _ in range(_ROUNDS):
            able = [i for i, source in enumerate(sources) if source.worthwhile()]
            if missing <= 0 or not able:
                break
            shares = _shares([sources[i] for i in able], missing)
            wanted: list[tuple[int, int]] = []
            for i, share in zip(able, shares, strict=True):
                wanted += [(position, i) for position in _pick(sources[i], share, used, rng)]
                sources[i].asked += share
            wanted.sort()
            for i in samples.take(file, scratch, wanted):
                sources[i].kept += 1
            missing = count - len(samples)
    if not len(samples):
        raise errors.FileFormatError(
            f"The file {name!r} has no bytes that would be known again: all its tensors are empty, "
            f"constant or periodic; name a file with trained weights."
        )
    return samples


def samples_from_parts(parts: Mapping[str, bytes], name: str = "parts") -> Samples:
    """Takes one sample of each part, by its name: text, rows of keys and values, numbers of tokens.
    A part of more than 16 bytes gives one of its places. Parts whose bytes would not be known again
    give none (Samples.without_samples()); samples_from_safetensors() says which those are.

    The parts are the caller's: this process holds what it looks for as long as they do.

    Raises FileFormatError (no part is distinctive), ArgumentError (there are none),
    ArgumentTypeError.
    """
    if not parts:
        raise errors.ArgumentError("There are no parts; give at least one, of 16 bytes or more.")
    header, at = {}, 0
    for part, content in parts.items():
        if not isinstance(part, str) or not isinstance(content, bytes):
            raise errors.ArgumentTypeError(
                f"parts must be bytes by name, not {type(content).__name__} by "
                f"{type(part).__name__}."
            )
        header[part] = {
            "dtype": "U8",
            "shape": [len(content)],
            "data_offsets": [at, at + len(content)],
        }
        at += len(content)
    text = json.dumps(header).encode()
    with open(f"pyccmem-{name}", "wb", opener=_in_memory) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(parts.values())
        file.flush()
        count = min(len(parts), MAX_SAMPLES)
        return samples_from_safetensors(f"/proc/self/fd/{file.fileno()}", count)


def _in_memory(name: str, _: int) -> int:
    """Opens a file that lies only in memory, for open()."""
    return os.memfd_create(name, os.MFD_CLOEXEC)
