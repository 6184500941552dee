# SPDX-License-Identifier: Apache-2.0
"""Records: values under ids of text, beside the vectors of an index, for adapters to other
libraries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..binding.arguments import integer
from ..core.forks import Lock
from .encoding import Floats, matrix_of
from .ids import Integers
from .index import EncryptedIndex

__all__ = ["Found", "Record", "Records"]

#: Ids of an index are from 0 to 2**63 - 2.
_NUMBERS = 2**63 - 1

#: By how much a search that leaves records out looks further, when it has found too few.
_FURTHER = 4

#: Records that all() opens together.
_TOGETHER = 256


class Record(NamedTuple):
    """A value, and the id that it was put under."""

    id: str
    value: Any


class Found(NamedTuple):
    """A record that a search found. `number` is the id of its vector in the index."""

    record: Record
    score: float
    number: int


class Records:
    """Values that JSON can write, each under an id of text and with a vector, in an EncryptedIndex.

    Ids and values are payloads of the index, and so ciphertext. The id of a vector in the index is
    a hash of the record's id (BLAKE2b): it lies in the clear in memory, and who sees it can try
    which text it is of.

    All methods may be called from several threads. What put() and remove() change is a change of
    the index; two calls of them come one after the other.
    """

    __slots__ = ("_lock", "index")

    def __init__(self, index: EncryptedIndex) -> None:
        """Records in `index`, which stays the caller's to close. Raises ArgumentTypeError."""
        if not isinstance(index, EncryptedIndex):
            raise errors.ArgumentTypeError(
                f"index must be an EncryptedIndex or EncryptedIVF, not {type(index).__name__}."
            )
        self.index = index
        self._lock = Lock()

    def put(self, ids: Sequence[str], vectors: npt.ArrayLike, values: Sequence[Any]) -> None:
        """Puts a value and a vector under each id. What was there under the id is replaced; of an
        id that comes twice the last counts.

        `vectors` has shape [n, dim]. Raises ArgumentError, ArgumentTypeError for values that JSON
        cannot write, and what EncryptedIndex.add() raises. New records are added first: when
        replacing others fails after that, they stay.
        """
        last = {id: at for at, id in enumerate(ids)}
        given = np.empty((0, self.index.dim), np.float32)
        if len(ids):
            given = matrix_of("vectors", vectors, self.index.dim)
        if not len(ids) == len(given) == len(values):
            raise errors.ArgumentError(
                f"{len(ids)} ids, {len(given)} vectors, {len(values)} values; give as many of each."
            )
        if not last:
            return
        names, rows = list(last), np.fromiter(last.values(), np.int64, len(last))
        bodies = [_encoded(Record(id, values[at])) for id, at in last.items()]
        numbers = _numbers_of(names)
        with self._lock.here():
            there = self._there(numbers)
            self._check_names(numbers[there], [names[at] for at in np.flatnonzero(there)])
            for some, change in ((~there, self._add), (there, self._update)):
                if some.any():
                    chosen = [bodies[at] for at in np.flatnonzero(some)]
                    change(numbers[some], given[rows[some]], chosen)

    def remove(self, ids: Iterable[str]) -> None:
        """Removes the records of these ids; those that are not there are ignored. Raises
        ArgumentTypeError, and what EncryptedIndex.remove() raises."""
        names = list(dict.fromkeys(ids))
        numbers = _numbers_of(names)
        with self._lock.here():
            there = self._there(numbers)
            self._check_names(numbers[there], [names[at] for at in np.flatnonzero(there)])
            self.index.remove(numbers[there])

    def clear(self) -> None:
        """Removes all records."""
        with self._lock.here():
            self.index.remove(self.index.ids())

    def get(self, ids: Sequence[str]) -> list[Record | None]:
        """Returns the records of these ids, None for those that are not there. Raises ArgumentError
        for a payload that is no record, ArgumentTypeError, IntegrityError."""
        found = self._read(_numbers_of(ids))
        return [
            one if one is not None and one.id == id else None
            for id, one in zip(ids, found, strict=True)
        ]

    def all(self) -> Iterator[Record]:
        """Yields the records that are there when it begins, and are not removed meanwhile. Raises
        what get() raises."""
        numbers = self.index.ids()
        for first in range(0, len(numbers), _TOGETHER):
            found = self._read(numbers[first : first + _TOGETHER])
            yield from (one for one in found if one is not None)

    def search(
        self, query: npt.ArrayLike, k: int, filter: Callable[[Record], bool] | None = None
    ) -> list[Found]:
        """Returns the `k` best records for a query of shape [dim], the best first, or fewer when
        there are fewer. A record that is removed meanwhile is left out.

        `filter` is called with records in the order of their scores, until `k` passed: what it says
        False to is left out. Raises what EncryptedIndex.search() raises, ArgumentError for a
        payload that is no record.
        """
        number = integer("k", k)
        if number < 1:
            raise errors.ArgumentError(f"k is {number}; it must be at least 1.")
        looked: dict[int, Record | None] = {}
        wanted = number
        while True:
            total = len(self.index)
            if not total:
                return []
            wanted = min(wanted, total)
            scores, ids = self.index.search(query, wanted)
            if ids.ndim != 1:
                raise errors.ArgumentError(f"query has {len(ids)} rows; give one of shape [dim].")
            scores, ids = scores[ids >= 0], ids[ids >= 0]
            new = np.array([one for one in ids.tolist() if one not in looked], np.int64)
            for one, record in zip(new.tolist(), self._read(new), strict=True):
                passes = record is not None and (filter is None or filter(record))
                looked[one] = record if passes else None
            found = [
                Found(record, float(score), one)
                for score, one in zip(scores, ids.tolist(), strict=True)
                if (record := looked[one]) is not None
            ]
            if filter is None or len(found) >= number or len(ids) < wanted or wanted == total:
                return found[:number]
            wanted *= _FURTHER

    def vectors(self, found: Sequence[Found]) -> Floats:
        """Returns the vectors of what search() found, of shape [n, dim], in memory that is wiped.
        Raises what EncryptedIndex.get() raises."""
        return self.index.get([one.number for one in found])

    def _add(self, numbers: Integers, vectors: Floats, bodies: list[bytes]) -> None:
        self.index.add(vectors, numbers, bodies)

    def _update(self, numbers: Integers, vectors: Floats, bodies: list[bytes]) -> None:
        self.index.update(numbers, vectors, bodies)

    def _there(self, numbers: Integers) -> npt.NDArray[np.bool_]:
        return np.array([one in self.index for one in numbers.tolist()], np.bool_)

    def _check_names(self, numbers: Integers, names: Sequence[str]) -> None:
        """Raises ArgumentError when a number is that of a record with another id."""
        for name, record in zip(names, self._read(numbers), strict=True):
            if record is not None and record.id != name:
                raise errors.ArgumentError(
                    f"The hash of the id {name!a} is that of another record's id; choose another."
                )

    def _read(self, numbers: Integers) -> list[Record | None]:
        """Returns the records of these numbers, None for those that are not there."""
        if not len(numbers):
            return []
        try:
            bodies = self.index.payloads(numbers)
        except errors.ArgumentError:
            if len(numbers) == 1:
                return [None]
            return [self._read(numbers[at : at + 1])[0] for at in range(len(numbers))]
        return [
            _decoded(body, number) for body, number in zip(bodies, numbers.tolist(), strict=True)
        ]


def _numbers_of(ids: Iterable[str]) -> Integers:
    """Returns the hashes of ids. Raises ArgumentTypeError, ArgumentError when two ids that differ
    have the same."""
    found: dict[int, str] = {}
    numbers = []
    for id in ids:
        if not isinstance(id, str):
            raise errors.ArgumentTypeError(f"An id must be a str, not {type(id).__name__}.")
        digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "little") % _NUMBERS
        if found.setdefault(number, id) != id:
            raise errors.ArgumentError(
                f"The ids {id!a} and {found[number]!a} have the same hash; choose others."
            )
        numbers.append(number)
    return np.array(numbers, np.int64)


def _encoded(record: Record) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.ArgumentTypeError(
            f"The record of id {record.id!a} has what JSON cannot write ({error})."
        ) from None


def _decoded(body: bytes | None, number: int) -> Record:
    """Returns a record, and wipes the bytes that it was read from."""
    try:
        id, value = json.loads((body or b"").decode("utf-8", "surrogatepass"))
        if isinstance(id, str):
            return Record(id, value)
    except (ValueError, TypeError):
        pass
    finally:
        if body is not None:
            wiped.wipe_bytes(body)
    raise errors.ArgumentError(
        f"The payload of id {number} is no record; use an index that only records were put into."
    )
