# SPDX-License-Identifier: Apache-2.0
"""QuantizedTensor: an array whose rows lie in memory as encrypted blocks of a few bits an
element."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from inspect import Signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import ffi, wiped
from ..binding.arguments import integer
from ..core import block_maker, maker
from ..core.block_formats import BlockFormat, format_named
from ..core.block_matrix import BlockMatrix, BlockOperand, open_rows
from ..core.index_types import Parts, Places
from ..core.indexing import refuse, reshaped
from ..core.operand import place_of
from ..core.rekey import KeyUse
from ..core.resource import Resource
from ..core.runs import flat_parts, scatter
from ..core.store import check_open, check_writable
from ..keys import Key
from ..product.linear import linear, matmul
from ..tensor import EncryptedTensor, maker_of
from .making import Packed, checked_source, in_parts, packed_rows
from .rows import Elements, Rows, chosen

if TYPE_CHECKING:
    from ..arena import Arena

__all__ = ["QuantizedTensor"]

Array = npt.NDArray[Any]

#: Bytes of float32 that are opened at a time where not all that is opened is wanted.
_BLOCK = 1 << 20


class QuantizedTensor(BlockOperand, np.lib.mixins.NDArrayOperatorsMixin, Resource):
    """A C-contiguous array of shape (..., cols) whose rows are encrypted blocks of a BlockFormat,
    such as "q4_k": a quarter to a tenth of float32's bytes to keep and to decrypt.

    Made by EncryptedTensor.from_numpy(array, dtype="q4_k", key=...), .zeros(shape, "q4_k",
    key=...), or from_blocks() over blocks that lie encrypted already. `t[index]` decrypts the rows
    that hold what `index` names and returns their elements as float32, as NumPy would of the whole
    array: an ordinary array, in memory that is wiped when the last reference to it goes.
    `pyccmem.linear(x, t)` multiplies without a plain copy of the matrix.

    The blocks are those of `raw`, an EncryptedTensor of bytes: they have its key, name, cipher, and
    arena; its pages are what is verified, and what a changed page makes unreadable. close() closes
    it. All methods may be called from several threads at once.
    """

    __slots__ = ("_format", "_raw", "_scale", "_shape")

    _instead_of_a_copy = "make a new one with copy(key=...)"
    _instead: Mapping[str, str] = MappingProxyType(
        {
            **dict.fromkeys(
                (name for name in dir(np.ndarray) if not name.startswith("_")),
                "t.dequantize() returns a plain array that has it, and NumPy's functions take t",
            ),
            "T": "pyccmem.linear(x, t) is x @ t.T and opens tiles; t.dequantize().T is plain",
            "astype": "t.dequantize() gives float32, and pyccmem.linear(x, t) takes x of any type",
            "data": "the blocks lie in t.raw.buffer, as ciphertext",
            "view": "the bytes of the blocks are t.raw",
            "open": "open rows with t[a:b], or all with t.dequantize()",
            "map": "a mapping shows bytes as they lie; map t.raw, or open rows with t[a:b]",
            "buffer": "the blocks lie in t.raw.buffer",
            "numpy": "t.dequantize() returns a plain array",
        }
    )

    _format: BlockFormat
    _raw: EncryptedTensor
    _scale: EncryptedTensor | None
    _shape: tuple[int, ...]

    #: Nothing can be given to the constructor; who tries is told what to call.
    __signature__ = Signature()

    def __init__(self, *arguments: object, **options: object) -> None:
        """Raises ArgumentTypeError: tensors are made by from_numpy(), zeros() and from_blocks()."""
        raise errors.ArgumentTypeError(
            "QuantizedTensor() makes no tensor; use EncryptedTensor.from_numpy(array, "
            "dtype='q4_k', key=...), .zeros(shape, 'q4_k', key=...) or "
            "QuantizedTensor.from_blocks(raw, format, shape)."
        )

    # ---- making ----

    @classmethod
    def from_blocks(
        cls,
        raw: EncryptedTensor,
        format: str | BlockFormat,
        shape: tuple[int, ...],
        scale: EncryptedTensor | None = None,
    ) -> QuantizedTensor:
        """Returns a tensor of this shape over the blocks that `raw` holds, an EncryptedTensor of
        uint8 and of shape (rows, row bytes), without a copy of anything. "int8_row" needs `scale`,
        an EncryptedTensor of float32 and of shape (rows,), and no other format has one. The new
        tensor owns both: close() closes them.

        Raises ArgumentError for an unknown format and for shapes that do not fit each other,
        ArgumentTypeError for other types.
        """
        kind = format_named(format)
        lengths = _lengths(shape)
        packed = kind.packed_shape(lengths)
        if not isinstance(raw, EncryptedTensor):
            raise errors.ArgumentTypeError(
                f"raw must be an EncryptedTensor of uint8, not {type(raw).__name__}."
            )
        if raw.dtype != np.uint8:
            raise errors.ArgumentTypeError(f"raw is of {raw.dtype}; it must be uint8.")
        if raw.shape != packed:
            raise errors.ArgumentError(
                f"raw has shape {raw.shape}; {kind} blocks of shape {lengths} need {packed}."
            )
        _check_scale(kind, scale, packed[0])
        return cls._of(raw, kind, lengths, scale)

    @classmethod
    def _of(
        cls,
        raw: EncryptedTensor,
        format: BlockFormat,
        shape: tuple[int, ...],
        scale: EncryptedTensor | None,
    ) -> QuantizedTensor:
        self = object.__new__(cls)
        self._raw, self._format, self._shape, self._scale = raw, format, shape, scale
        return self

    @classmethod
    def from_numpy(
        cls,
        array: npt.ArrayLike,
        format: str | BlockFormat,
        *,
        key: Key | None = None,
        cipher: str | None = None,
        page_size: int | None = None,
        name: str | None = None,
        arena: Arena | None = None,
        fresh: bool = False,
    ) -> QuantizedTensor:
        """Returns a tensor of the elements of `array` (or of what NumPy makes of it), real numbers,
        whose last dimension must be whole blocks. It stays unchanged: overwrite it yourself. At
        most 1 MiB of float32 is in the clear beside it. Options are those of
        EncryptedTensor.from_numpy(), which does the same with `dtype=format`.

        Raises ArgumentError for an unknown format, for a shape that cannot be, and for a number
        that is infinite or not one, whose place it names; ArgumentTypeError; and what
        EncryptedTensor.from_numpy() raises.
        """
        return cls._encrypted(
            array,
            format_named(format),
            key=key,
            cipher=cipher,
            page_size=page_size,
            name=name,
            arena=arena,
            fresh=fresh,
        )

    @classmethod
    def zeros(
        cls,
        shape: int | tuple[int, ...],
        format: str | BlockFormat,
        *,
        key: Key | None = None,
        cipher: str | None = None,
        page_size: int | None = None,
        name: str | None = None,
        arena: Arena | None = None,
        fresh: bool = False,
    ) -> QuantizedTensor:
        """Returns a tensor whose bytes are all zero, and so its elements. A page takes memory when
        it is first written. Options and errors are those of from_numpy()."""
        return cls._zeros(
            shape,
            format_named(format),
            key=key,
            cipher=cipher,
            page_size=page_size,
            name=name,
            arena=arena,
            fresh=fresh,
        )

    @classmethod
    def _encrypted(cls, source: Any, format: BlockFormat, **options: Any) -> QuantizedTensor:
        """Returns a tensor with the contents of an array, some of which are in the clear at a time.
        Options are those of EncryptedTensor.from_numpy()."""
        array = checked_source(source)
        rows, _ = format.packed_shape(array.shape)
        if options["arena"] is not None:
            return cls._in_arena(array, format, options)
        self = cls._zeros(array.shape, format, **options)
        try:
            self._write(slice(0, rows), array)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def _in_arena(cls, array: Array, format: BlockFormat, options: Any) -> QuantizedTensor:
        """Does _encrypted() in an arena, where each page may have to be sealed once, in order."""
        place, name = maker_of(**options), options["name"]
        source = Packed(format, array)
        raw = maker.in_order(
            place, format.packed_shape(array.shape), np.dtype(np.uint8), source, _put, name
        )
        scale = None
        try:
            if source.scale is not None:
                scale = maker.encrypted(place, source.scale, _scale_name(name))
            return cls._of(raw, format, array.shape, scale)
        except BaseException:
            raw.close()
            raise

    @classmethod
    def _zeros(cls, shape: Any, format: BlockFormat, **options: Any) -> QuantizedTensor:
        """Returns a tensor of zeros. Options are those of EncryptedTensor.zeros()."""
        lengths = _lengths(shape)
        packed = format.packed_shape(lengths)
        raw = EncryptedTensor.zeros(packed, np.uint8, **options)
        scale = None
        try:
            if format.scaled_rows:
                options["name"] = _scale_name(options["name"])
                scale = EncryptedTensor.zeros(packed[0], np.float32, **options)
            return cls._of(raw, format, lengths, scale)
        except BaseException:
            raw.close()
            raise

    def copy(
        self,
        *,
        key: Key | None = None,
        cipher: str | None = None,
        page_size: int | None = None,
        name: str | None = None,
        arena: Arena | None = None,
        fresh: bool = False,
    ) -> QuantizedTensor:
        """Returns a tensor of the same blocks in a buffer of its own, or in an arena. Opens and
        seals blocks as they are. Arguments and errors are those of EncryptedTensor.copy()."""
        options: dict[str, Any] = {
            "key": key,
            "cipher": cipher,
            "page_size": page_size,
            "arena": arena,
            "fresh": fresh,
        }
        raw = self._raw.copy(name=name, **options)
        try:
            scale = self._scale
            if scale is not None:
                scale = scale.copy(name=_scale_name(name), **options)
            return self._of(raw, self._format, self._shape, scale)
        except BaseException:
            raw.close()
            raise

    # ---- reading ----

    @overload
    def __getitem__(self, index: Places) -> Any: ...

    @overload
    def __getitem__(self, index: Parts) -> npt.NDArray[np.float32]: ...

    def __getitem__(self, index: Any) -> Any:
        """Returns what NumPy's `array[index]` would give of the elements, as float32, decrypted:
        basic indexing, integer and boolean arrays. Rows are opened as a whole.

        Raises IndexingError, ArgumentError, ArgumentTypeError where NumPy raises IndexError,
        ValueError, TypeError; IntegrityError if a page that holds one of the rows was changed, and
        then returns nothing; ClosedError, ForkError, OutOfMemoryError.
        """
        found = chosen(index, self._shape)
        if isinstance(found, Elements):
            return self._elements(found)
        if found.columns is None:
            cols = self._shape[-1]
            out = wiped.empty((*found.shape, cols), np.float32)
            self._open(found.numbers, out.reshape(math.prod(found.shape), cols))
            return out
        return self._columns(found)

    def _open(self, numbers: Any, out: Array) -> None:
        open_rows(self._block_matrix(), numbers, out)

    def _columns(self, found: Rows) -> Array:
        """Returns a slice of columns of rows, of which a block is open at a time."""
        cols, numbers = self._shape[-1], found.numbers
        count = math.prod(found.shape)
        width = len(range(*found.columns.indices(cols)))  # type: ignore[union-attr]
        out = wiped.empty((*found.shape, width), np.float32)
        lines = out.reshape(count, width)
        step = max(min(_BLOCK // max(4 * cols, 1), count), 1)
        part = wiped.empty((step, cols), np.float32)
        try:
            for at in range(0, count, step):
                n = min(step, count - at)
                some = (
                    slice(numbers.start + at, numbers.start + at + n)
                    if isinstance(numbers, slice)
                    else numbers[at : at + n]
                )
                self._open(some, part[:n])
                lines[at : at + n] = part[:n, found.columns]
        except BaseException:
            out.fill(0)
            raise
        finally:
            part.fill(0)
        return out

    def _elements(self, found: Elements) -> Any:
        """Returns elements, of whose rows a block is open at a time."""
        out = wiped.empty(found.rows.shape, np.float32)
        flat, rows = out.reshape(-1), found.rows.reshape(-1)
        columns = found.columns.reshape(-1)
        most = max(_BLOCK // max(4 * self._shape[-1], 1), 1)
        # Of rows that are named one after the other, each time they change.
        changes = np.concatenate(([0], np.flatnonzero(rows[1:] != rows[:-1]) + 1))
        bounds = [*changes[::most].tolist(), len(rows)] if len(rows) else [0]
        try:
            for at, end in itertools.pairwise(bounds):
                numbers, which = np.unique(rows[at:end], return_inverse=True)
                part = wiped.empty((len(numbers), self._shape[-1]), np.float32)
                try:
                    self._open(numbers, part)
                    flat[at:end] = part[which.reshape(-1), columns[at:end]]
                finally:
                    part.fill(0)
        except BaseException:
            out.fill(0)
            raise
        return out[()] if found.scalar else out

    def dequantize(self) -> Array:
        """Returns the whole tensor as float32, in memory that is wiped when the last reference to
        it goes. Raises as `t[...]` does."""
        out: Array = self[...]
        return out

    def read_into(self, out: Array, start: int = 0) -> None:
        """Writes the rows from row `start` on to `out`, a writable C-contiguous array of float32
        and of shape (rows, cols), in which rows of all leading dimensions count one after the
        other. On failure `out` is zeros. Raises as `t[...]` does."""
        start = integer("start", start)
        rows, cols = self._raw.shape[0], self._shape[-1]
        if not isinstance(out, np.ndarray) or out.dtype != np.float32:
            raise errors.ArgumentTypeError("out must be an array of float32.")
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise errors.ArgumentError("out must be writable and lie in one piece, in C order.")
        if out.ndim != 2 or out.shape[1] != cols or not 0 <= start <= rows - len(out):
            raise errors.ArgumentError(
                f"out has shape {out.shape}, from row {start} on; it must be (n, {cols}), of the "
                f"{rows} rows there are."
            )
        self._open(slice(start, start + len(out)), out)

    def blocks(self, nbytes: int = 1 << 20) -> Iterator[Array]:
        """Returns the tensor in order along its first axis, as float32 arrays of as many whole
        entries as fit in `nbytes` bytes; the last may have fewer. Raises ArgumentError when not
        even one fits."""
        nbytes = integer("nbytes", nbytes)
        count, row = self._shape[0], 4 * math.prod(self._shape[1:])
        if len(self._shape) == 1:
            raise errors.ArgumentTypeError("A tensor of one dimension is one row; use t[...].")
        if nbytes < max(row, 1):
            raise errors.ArgumentError(
                f"nbytes is {nbytes}; an entry of this tensor takes {row} bytes, so use at least "
                f"{max(row, 1)}."
            )
        step = nbytes // row if row else max(count, 1)
        return (self[at : at + step] for at in range(0, count, step))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Returns the whole tensor as a plain array, for np.asarray() and np.array(); read-only
        unless a copy is asked for, so that no function writes into a copy that is then lost.
        `copy=False` raises ArgumentError."""
        if copy is False:
            raise errors.ArgumentError(
                "A plain array of a QuantizedTensor is always a copy; use copy=None or copy=True."
            )
        array = self.dequantize()
        wanted = array.dtype if dtype is None else np.dtype(dtype)
        if wanted != array.dtype:
            converted = wiped.empty(array.shape, wanted)
            np.copyto(converted, array, casting="unsafe")
            array = converted
        array.flags.writeable = bool(copy)
        return array

    def __len__(self) -> int:
        return self._shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Yields t[0], t[1], ..., each decrypted when it is asked for."""
        return map(self.__getitem__, range(self._shape[0]))

    def verify(self) -> list[int]:
        """Checks the pages in which the blocks lie against their tags, in several threads. Returns
        the numbers of the pages of `raw` that do not match, and -1 if the scales of the rows do
        not; an empty list if all are as they were written. Raises as EncryptedTensor.verify()."""
        bad = self._raw.verify()
        if self._scale is not None and self._scale.verify():
            bad = [-1, *bad]
        return bad

    # ---- writing ----

    def __setitem__(self, index: Any, value: Any) -> None:
        """Quantises `value`, converted to float32 and broadcast as NumPy does, to the rows that
        `index` names, as a whole; scales are found for each block anew. If an index names a row
        twice, the last value stays.

        Raises as __getitem__() does; ArgumentError for a part of a row, and for a number that is
        infinite or not one, whose place it names: nothing of its part of 1 MiB, and nothing behind
        it, is written then; VersionExhaustedError, ReadOnlyError.
        """
        found = chosen(index, self._shape)
        if isinstance(found, Elements) or found.columns is not None:
            raise errors.ArgumentError(
                "A part of a row cannot be written alone, because its blocks share scales; read "
                "the row, change it, and write it as a whole: t[i] = row."
            )
        for part in self._parts():
            check_writable(place_of(part)[0])
        self._opened()
        try:
            array = checked_source(value)
            wanted = np.broadcast_to(array, (*found.shape, self._shape[-1]))
        except errors.PyccmemError:
            raise
        except (TypeError, ValueError) as error:
            raise refuse(error, "The assignment", self._shape) from None
        self._write(found.numbers, wanted)

    def _write(self, numbers: Any, value: Array) -> None:
        """Writes rows, by their numbers or a slice of step 1."""
        count, cols = math.prod(value.shape[:-1]), self._shape[-1]
        if isinstance(numbers, slice):
            self._write_run(numbers.start, in_parts(self._format, value, 0, value.size))
            return
        one = max(min(_BLOCK // max(4 * cols, 1), count), 1)
        lines = value.reshape(count, cols) if value.flags.c_contiguous else None
        for at in range(0, count, one):
            n = min(one, count - at)
            if lines is not None:
                some = lines[at : at + n]
            else:
                some = wiped.empty((n, cols), value.dtype)
                for place, part in flat_parts(value, value.shape, at * cols, n * cols):
                    some.reshape(-1)[place : place + part.size] = part.reshape(-1)
            packed, scale = packed_rows(self._format, some)
            self._scatter(self._raw, numbers[at : at + n], packed)
            if scale is not None and self._scale is not None:
                self._scatter(self._scale, numbers[at : at + n], scale)

    def _write_run(self, first: int, parts: Any) -> None:
        start = first * (self._raw.nbytes // max(self._raw.shape[0], 1))
        row = first
        for at, blocks, scales in parts:
            self._raw.buffer.write(blocks, place_of(self._raw)[1] + start + at)
            if scales is not None and self._scale is not None:
                self._scale[row : row + len(scales)] = scales
                row += len(scales)

    @staticmethod
    def _scatter(tensor: EncryptedTensor, numbers: Array, rows: Array) -> None:
        store, offset = place_of(tensor)
        size = rows.nbytes // max(len(numbers), 1)
        if size:
            scatter(store, numbers * size + offset, size, ffi.cast("uint8_t *", rows.ctypes.data))

    # ---- products ----

    def linear(
        self, x: npt.ArrayLike, bias: npt.ArrayLike | EncryptedTensor | None = None
    ) -> Array:
        """Returns x · selfᵀ + bias; see pyccmem.linear()."""
        return linear(x, self, bias)

    def _block_matrix(self) -> BlockMatrix:
        store, offset = place_of(self._raw)
        scale = None if self._scale is None else place_of(self._scale)
        rows = self._raw.shape[0]
        return BlockMatrix(store, offset, rows, self._shape[-1], self._format, scale)

    __hash__ = object.__hash__  # by identity, although == compares elements

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Applies a ufunc of NumPy, as the operators do: np.matmul() a tile at a time, see
        pyccmem.linear(); any other to the whole tensor in the clear."""
        if ufunc is np.matmul and method == "__call__" and len(inputs) == 2 and not options:
            return matmul(*inputs)
        if any(isinstance(out, QuantizedTensor) for out in options.get("out", ())) or (
            method == "at" and isinstance(inputs[0], QuantizedTensor)
        ):
            raise errors.ArgumentError(
                "A ufunc cannot write into a QuantizedTensor; assign rows: t[a:b] = values."
            )
        plain = [x.__array__() if isinstance(x, QuantizedTensor) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **options)

    # ---- the same blocks in another form ----

    def reshape(self, *shape: Any, order: str = "C", copy: bool | None = None) -> QuantizedTensor:
        """Returns a tensor of another shape over the same blocks, in C order; one length may be -1.
        The last length must stay, because a row is a run of whole blocks. Moves no data; close()
        of one closes both. Raises ArgumentError, also for another order and for `copy=True`, which
        would move data; ArgumentTypeError."""
        if order not in ("C", "A") or copy:
            raise errors.ArgumentError(
                f"reshape() moves no data, and order={order!r}, copy={copy!r} would; "
                f"np.reshape(t.dequantize(), ...) returns a plain array."
            )
        try:
            lengths = reshaped(self._shape, shape[0] if len(shape) == 1 else shape)
        except (TypeError, ValueError) as error:
            raise refuse(error, "The new shape", self._shape) from None
        rows = self._raw.shape[0]  # if they have no elements, NumPy takes any number of them
        if not lengths or lengths[-1] != self._shape[-1] or math.prod(lengths[:-1]) != rows:
            raise errors.ArgumentError(
                f"The new shape is {lengths}; rows of blocks stay whole, so its last length must "
                f"be {self._shape[-1]}, as in {self._shape}. t.dequantize().reshape(...) gives "
                f"plain values in any shape."
            )
        return self._of(self._raw, self._format, lengths, self._scale)

    # ---- what it is ----

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The lengths of the dimensions, in elements."""
        return self._shape

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The number of dimensions."""
        return len(self._shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self._shape)

    @property
    def format(self) -> BlockFormat:
        """The block format."""
        return self._format

    @property
    def dtype(self) -> BlockFormat:
        """The block format, too."""
        return self._format

    @property
    def raw(self) -> EncryptedTensor:
        """The blocks as bytes: an EncryptedTensor of uint8 and of shape (rows, row bytes)."""
        return self._raw

    @property
    def scale(self) -> EncryptedTensor | None:
        """Of "int8_row" the rows' scales, an EncryptedTensor of float32; else None."""
        return self._scale

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks, those of the scales of rows included."""
        return self._raw.nbytes + (0 if self._scale is None else self._scale.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits that an element takes, its share of all scales included; 0 of none."""
        return 8 * self.nbytes / self.size if self.size else 0.0

    @property
    def name(self) -> str:
        """The tensor's name in errors, which is that of its blocks."""
        return self._raw.name

    @property
    def writable(self) -> bool:
        """False for blocks in a sealed file, or frozen; copy() makes a tensor that can be
        written."""
        return self._raw.writable and (self._scale is None or self._scale.writable)

    @property
    def cipher(self) -> str:
        """Name of the cipher suite."""
        return self._raw.cipher

    @property
    def authenticated(self) -> bool:
        """True when each page has a tag, so that a change raises IntegrityError."""
        return self._raw.authenticated

    @property
    def page_size(self) -> int:
        """Bytes of the unit of encryption."""
        return self._raw.page_size

    @property
    def frozen(self) -> bool:
        """True after freeze(), until thaw()."""
        return self._raw.frozen

    @property
    def fresh(self) -> bool:
        """True when a page that is put back from an earlier time raises IntegrityError; see
        EncryptedBuffer.fresh."""
        return self._raw.fresh

    def freeze(self) -> None:
        """Seals each page once more, as EncryptedTensor.freeze() does."""
        for part in self._parts():
            part.freeze()

    def thaw(self) -> None:
        """Makes a frozen tensor writable, as EncryptedTensor.thaw() does."""
        for part in self._parts():
            part.thaw()

    def rekey(
        self,
        key: Key | None = None,
        *,
        bytes_per_second: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Seals every page under another key while the tensor may be used, as
        EncryptedTensor.rekey() does; `progress` is called for the blocks, and then for the scales
        of rows, if there are any."""
        for part in self._parts():
            part.rekey(key, bytes_per_second=bytes_per_second, progress=progress)

    def key_use(self) -> KeyUse:
        """Returns how much the key of the blocks has sealed; see EncryptedBuffer.key_use()."""
        return self._raw.key_use()

    def _parts(self) -> tuple[EncryptedTensor, ...]:
        return (self._raw,) if self._scale is None else (self._raw, self._scale)

    def _description(self) -> str:
        kind = "" if self.writable else ", frozen" if self.frozen else ", read-only"
        return f"{self.name!a} of shape {self._shape}, {self._format}, {self.cipher}{kind}"

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._raw.closed

    def _opened(self) -> Any:
        store, _ = place_of(self._raw)
        check_open(store, "tensor")
        return store

    def close(self) -> None:
        """Closes the blocks, and the scales of rows: wipes the keys, frees the ciphertext. Arrays
        that were returned stay valid. May be repeated."""
        try:
            self._raw.close()
        finally:
            if self._scale is not None:
                self._scale.close()


class _Maker:
    """What EncryptedTensor's constructors use."""

    def encrypted(self, source: Any, format: BlockFormat, **options: Any) -> QuantizedTensor:
        return QuantizedTensor._encrypted(source, format, **options)

    def zeros(self, shape: Any, format: BlockFormat, **options: Any) -> QuantizedTensor:
        return QuantizedTensor._zeros(shape, format, **options)


block_maker.offer(_Maker())


def _scale_name(name: str | None) -> str | None:
    return None if name is None else f"{name}.scale"


def _put(memory: Any, offset: int, part: Array) -> None:
    """Writes packed rows to a part of memory, for an arena."""
    np.ndarray(part.shape, np.uint8, memory, offset)[...] = part


def _lengths(shape: Any) -> tuple[int, ...]:
    """Returns a shape as a tuple of ints. Raises ArgumentError, ArgumentTypeError."""
    lengths = shape if isinstance(shape, (tuple, list)) else (shape,)
    found = tuple(integer("a length in shape", n) for n in lengths)
    if any(n < 0 for n in found):
        raise errors.ArgumentError(f"shape is {found}; its lengths must be at least 0.")
    return found


def _check_scale(kind: BlockFormat, scale: Any, rows: int) -> None:
    """Raises ArgumentError or ArgumentTypeError unless `scale` is what the format needs."""
    if scale is None and not kind.scaled_rows:
        return
    if not kind.scaled_rows:
        raise errors.ArgumentError(f"{kind} blocks have their scales in them; leave scale out.")
    if scale is None:
        raise errors.ArgumentError(
            f"{kind} needs scale, an EncryptedTensor of float32 and of shape ({rows},)."
        )
    if not isinstance(scale, EncryptedTensor) or scale.dtype != np.float32:
        raise errors.ArgumentTypeError("scale must be an EncryptedTensor of float32.")
    if scale.shape != (rows,):
        raise errors.ArgumentError(f"scale has shape {scale.shape}; it must be ({rows},).")
