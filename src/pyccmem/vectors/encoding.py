# SPDX-License-Identifier: Apache-2.0
"""Vectors become rows as they are stored, and back; queries become what rows are multiplied by. All
copies lie in memory that is wiped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import OK, ffi, lib, wiped
from ..binding.arguments import plain_array
from ..core.indexing import address
from .form import BIAS, FACTOR, SCALE, Form

__all__ = ["Encoded", "Queries", "decode", "encoded", "matrix_of", "queries_of"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

#: Bytes of float32 that are encoded at a time.
_PART = 4 << 20

#: Vectors of a smaller norm are zero vectors for the cosine: what they are divided by would not be
#: a float32 any more.
_LEAST_NORM = 2.0**-100

#: Squares below this lose bits as float32, and the norm is taken in float64.
_LEAST_SQUARE = 2.0**-80


class Encoded(NamedTuple):
    """Some vectors as they are stored."""

    first: int  # which of those that were given is the first
    total: int
    rows: Array  # whose bytes are the rows
    columns: dict[str, Floats]
    fine: Encoded | None = None  # the same, as candidates are ranked again by

    def wipe(self) -> None:
        """Overwrites the rows."""
        self.rows.fill(0)
        if self.fine is not None:
            self.fine.wipe()


def matrix_of(name: str, value: Any, dim: int) -> Array:
    """Returns an array of shape [n, dim] of numbers. Raises ArgumentError, ArgumentTypeError."""
    array = plain_array(name, value)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise errors.ArgumentTypeError(f"{name} is of {array.dtype}; it must hold real numbers.")
    if array.ndim == 1 and (array.size or not dim):
        array = array[None]
    if not array.size and array.ndim <= 2 and 0 in array.shape[:1]:
        return np.empty((0, dim), np.float32)
    if array.ndim != 2 or array.shape[1] != dim:
        raise errors.ArgumentError(
            f"{name} has shape {array.shape}; it must have shape [n, {dim}], a vector of {dim} "
            f"elements in each row."
        )
    return array


def encoded(
    name: str, vectors: Array, form: Form, order: npt.NDArray[np.int64] | None = None
) -> Iterator[Encoded]:
    """Yields the vectors as they are stored, some at a time, in the order of `order`; each is valid
    until the next. Raises ArgumentError for numbers that are not finite, or that the type cannot
    hold."""
    part = _PART
    step = max(part // (form.dim * 4) // 1024 * 1024, min(len(vectors), 1024), 1)
    step = max(min(step, part // (form.dim * 4)), 1)
    most = min(step, max(len(vectors), 1))
    encoder = _Encoder(form, most)
    finer = None if form.fine is None else _Encoder(form.fine, most)
    try:
        for first in range(0, len(vectors), step):
            given = vectors[first : first + step]
            if order is not None:
                given = encoder.taken(vectors, order[first : first + step])
            rows = encoder.encoded(name, given, first)
            yield rows if finer is None else rows._replace(fine=finer.encoded(name, given, first))
    finally:
        encoder.wipe()
        if finer is not None:
            finer.wipe()


class _Encoder:
    """Encodes some vectors at a time, in scratch of its own."""

    def __init__(self, form: Form, most: int) -> None:
        self._form, self._most = form, most
        self._scratch: dict[str, Array] = {}

    def _room(self, name: str, count: int, dtype: Any) -> Array:
        room = self._scratch.get(name)
        if room is None:
            room = self._scratch[name] = wiped.empty((self._most, self._form.dim), dtype)
        return room[:count]

    def _column(self, name: str, count: int) -> Floats:
        room = self._scratch.get(name)
        if room is None:
            room = self._scratch[name] = wiped.empty(self._most, np.float32)
        found: Floats = room[:count]
        return found

    def wipe(self) -> None:
        """Overwrites the scratch now, because an exception's traceback may keep it alive."""
        for room in self._scratch.values():
            room.fill(0)

    def taken(self, given: Array, rows: npt.NDArray[np.int64]) -> Array:
        """Returns some rows of what was given, as float32."""
        floats = self._room("floats", len(rows), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for at, row in enumerate(rows.tolist()):
                np.copyto(floats[at], given[row], casting="unsafe")
        return floats

    def encoded(self, name: str, given: Array, first: int) -> Encoded:
        """Encodes what was given."""
        form, count = self._form, len(given)
        floats = given
        if given.dtype != np.float32 or not given.flags.c_contiguous or not given.flags.aligned:
            floats = self._room("floats", count, np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(floats, given, casting="unsafe")
        if form.dtype == "int8":
            return self._int8(name, floats, first)
        rows, values = floats, floats
        if form.dtype == "float16":
            rows = self._room("rows", count, np.float16)
            values = self._room("values", count, np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(rows, floats, casting="unsafe")
            np.copyto(values, rows)
        elif form.dtype == "bfloat16":
            rows = self._room("rows", count, np.uint16)
            values = self._room("values", count, np.float32)
            _round_to_bfloat16(rows, values, floats)
        square = _squares(values, self._column("square", count))
        bad = ~np.isfinite(square)
        if bad.any():
            self._refuse(name, floats, values, bad, first)
        columns = {}
        if form.metric == "cosine":
            columns[FACTOR] = _inverse_norms(values, square, self._column("inverse", count))
        elif form.metric == "l2":
            columns[BIAS] = np.multiply(square, np.float32(-0.5), out=square)
        return Encoded(first, count, rows, columns)

    def _int8(self, name: str, floats: Floats, first: int) -> Encoded:
        form, count = self._form, len(floats)
        rows = self._room("rows", count, np.int8)
        scale = self._column("scale", count)
        status = lib.ccmem_rows_quantize(
            ffi.cast("float *", address(floats)),
            count,
            form.dim,
            ffi.cast("uint8_t *", address(rows)),
            ffi.cast("float *", address(scale)),
        )
        if status != OK:
            good = np.isfinite(floats).all(axis=1)
            self._refuse(name, floats, floats, np.logical_not(good), first)
        if form.metric == "ip":
            return Encoded(first, count, rows, {FACTOR: scale})
        values = self._room("values", count, np.float32)
        np.copyto(values, rows)
        square = _squares(values, self._column("square", count))
        if form.metric == "cosine":
            inverse = _inverse_norms(values, square, self._column("inverse", count))
            np.sqrt(square, out=square)
            np.multiply(square, scale, out=square)
            inverse[square < _LEAST_NORM] = 0
            return Encoded(first, count, rows, {FACTOR: inverse, SCALE: scale})
        with np.errstate(over="ignore"):
            for factor in (scale, scale, np.float32(-0.5)):
                np.multiply(square, factor, out=square)
        bad = ~np.isfinite(square)
        if bad.any():
            self._refuse(name, floats, floats, bad, first)
        return Encoded(first, count, rows, {FACTOR: scale, BIAS: square})

    def _refuse(self, name: str, floats: Floats, values: Array, bad: Any, first: int) -> None:
        """Raises for the first row of `bad` that cannot be stored. Returns where the squares alone
        were too large, and nothing is made of them."""
        for at in np.flatnonzero(bad):
            where = f"{name} has in row {first + at}"
            if not np.isfinite(floats[at]).all():
                raise errors.ArgumentError(
                    f"{where} a number that is infinite or not a number; leave such vectors out."
                )
            if not np.isfinite(values[at]).all():
                raise errors.ArgumentError(
                    f"{where} a number that is too large for {self._form.dtype}; use a wider dtype."
                )
            if self._form.metric != "ip":
                raise errors.ArgumentError(
                    f"{where} a vector whose squared norm is too large for float32; divide all "
                    f"vectors by a number."
                )


def _squares(values: Floats, out: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        np.einsum("ij,ij->i", values, values, out=out)
    return out


def _inverse_norms(values: Floats, square: Floats, out: Floats) -> Floats:
    """Returns 1 / norm of each row; 0 for a zero vector."""
    np.sqrt(square, out=out)
    with np.errstate(divide="ignore"):
        np.divide(np.float32(1), out, out=out)
    for at in np.flatnonzero(square < _LEAST_SQUARE):
        wide = wiped.empty(values.shape[1], np.float64)
        np.copyto(wide, values[at])
        norm = float(np.sqrt(wide @ wide))
        wide.fill(0)
        out[at] = 1 / norm if norm >= _LEAST_NORM else 0
    return out


def _round_to_bfloat16(rows: Array, values: Array, floats: Floats) -> None:
    """Fills `rows` with the nearest bfloat16, of two the even one, and `values` with these as
    float32."""
    bits, work = floats.view(np.uint32), values.view(np.uint32)
    np.right_shift(bits, 16, out=work)
    np.bitwise_and(work, 1, out=work)
    np.add(work, 0x7FFF, out=work)
    np.add(work, bits, out=work)
    np.right_shift(work, 16, out=work)
    np.copyto(rows, work, casting="unsafe")
    np.left_shift(work, 16, out=work)


def decode(rows: Array, form: Form, scale: Floats | None) -> Floats:
    """Returns rows of the form's type, [n, dim], as float32 in memory that is wiped. bfloat16 is
    given as its bits."""
    out: Floats = wiped.empty(rows.shape, np.float32)
    if form.dtype == "bfloat16":
        bits = out.view(np.uint32)
        np.copyto(bits, rows)
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, rows)
    if scale is not None:
        np.multiply(out, scale[:, None], out=out)
    return out


class Queries(NamedTuple):
    """Queries as rows are multiplied by them, and their squares."""

    floats: Floats
    square: npt.NDArray[np.float64]
    single: bool  # one vector was given, not a matrix


def queries_of(value: Any, form: Form) -> Queries:
    """Returns queries, in memory that is wiped. Those of a cosine get length 1; a zero vector stays
    one. Raises ArgumentError, ArgumentTypeError."""
    given = matrix_of("queries", value, form.dim)
    single = np.ndim(value) == 1
    floats: Floats = wiped.empty(given.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(floats, given, casting="unsafe")
    finite = np.isfinite(floats).all(axis=1)
    if not finite.all():
        raise errors.ArgumentError(
            f"queries has in row {int(np.argmin(finite))} a number that is infinite or not a "
            f"number; leave such vectors out."
        )
    square = np.zeros(len(floats), np.float64)
    if form.metric != "ip":
        wide = wiped.empty(given.shape, np.float64)
        np.copyto(wide, floats)
        square = np.einsum("ij,ij->i", wide, wide)
        if form.metric == "cosine":
            norm = np.sqrt(square)
            norm[norm < _LEAST_NORM] = np.inf
            np.divide(wide, norm[:, None], out=wide)
            np.copyto(floats, wide, casting="unsafe")
        wide.fill(0)
    return Queries(floats, square, single)
