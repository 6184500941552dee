# SPDX-License-Identifier: Apache-2.0
"""Reads the header of a safetensors file, and checks it before anything relies on it.

The format (https://github.com/huggingface/safetensors, section "Format"): eight bytes with the
header's length as a little-endian integer, the header as a JSON object in UTF-8 that begins with
"{" and may be padded with spaces, then the tensors' data up to the end of the file. The header
gives each tensor a dtype, a shape and its place in the data; the tensors must fill the data without
overlap and without holes. A file that breaks one of these rules is refused. So the offsets in
entries always lie inside the file, and an entry has the length that its dtype and shape need.

The format's own library takes some files that are refused here: files with a name twice in an
object or blanks before the "{", which the format forbids; with a tensor as a list of its fields;
and with an extent of 2^63 or more beside an extent of 0, for which NumPy has no shape.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from .. import errors
from ..binding.owned import Descriptor
from ..core.dtypes import DTYPES

__all__ = [
    "DTYPE_BITS",
    "LENGTH_BYTES",
    "MAX_ELEMENTS",
    "MAX_HEADER_BYTES",
    "Entry",
    "Header",
    "about",
    "open_file",
    "parse_object",
    "read_all",
    "read_header",
    "shown",
    "tensor_bytes",
]

#: Longest header that is read, in bytes; the format's own limit.
MAX_HEADER_BYTES = 100_000_000

#: Bits of one element of each dtype of the format, by the name it has in a header.
DTYPE_BITS: dict[str, int] = {
    **{dtype.safetensors: dtype.bits for dtype in DTYPES.values() if dtype.safetensors},
    # Elements of less than a byte, which NumPy's arrays cannot have.
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}

#: Bytes before the header that hold its length.
LENGTH_BYTES = 8

#: No tensor of the format has more elements.
MAX_ELEMENTS = 2**63 - 1

_FIELDS = ("dtype", "shape", "data_offsets")


@dataclass(frozen=True)
class Entry:
    """One tensor: its data are bytes `start` to `end` (end excluded) of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """Everything before the data of a file of `size` bytes."""

    raw: bytes  # the length, the JSON text and its padding, as they are in the file
    metadata: dict[str, str]
    entries: list[Entry]  # in the order of their data
    size: int

    @property
    def data_start(self) -> int:
        """Offset in the file of the first byte of data."""
        return len(self.raw)


def open_file(path: str | os.PathLike[str], what: str = "a safetensors file") -> BinaryIO:
    """Opens a regular file for reading, without Python's own buffer. `what` names the kind of file
    in an error. Raises FileReadError (MissingFileError for a file that is not there),
    ArgumentTypeError."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise errors.ArgumentTypeError(
            f"A path must be a file's name, not {type(path).__name__}; name {what}."
        )
    try:
        file = cast(BinaryIO, _File(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise errors.FileReadError(f"{os.fspath(path)!r} is not a regular file; name {what}.")
    return file


class _File(io.FileIO):
    """A file open for reading. A Descriptor owns its descriptor."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        self._descriptor = Descriptor.open(path, os.O_RDONLY | os.O_NONBLOCK)
        super().__init__(self._descriptor.number, "rb", closefd=False)
        self.name = path

    def close(self) -> None:
        super().close()
        self._descriptor.close()


def read_header(file: BinaryIO) -> list[Entry]:
    """Returns the tensors of an open safetensors file, in the order of their data. Reads and raises
    as read_all() does."""
    return read_all(file).entries


@contextmanager
def about(name: str | None) -> Iterator[None]:
    """Puts the file's name, if there is one, before the text of a FileFormatError of the block."""
    try:
        yield
    except errors.FileFormatError as error:
        text = str(error)
        if name is None or not text.startswith("This "):
            raise
    else:
        return
    raise errors.FileFormatError(f"{name!a}: {text}")


def read_all(file: BinaryIO) -> Header:
    """Returns the header of an open safetensors file.

    Reads the header and nothing more, and leaves the position at the first byte of the data.
    Raises FileFormatError with what is wrong, FileReadError when the system refuses a read.
    """
    given = getattr(file, "name", None)  # a number if the file was opened by descriptor
    name = os.fsdecode(given) if isinstance(given, (str, bytes, os.PathLike)) else None
    with about(name):
        return _read_all(file, "the file" if name is None else name)


def _read_all(file: BinaryIO, name: str) -> Header:
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size < LENGTH_BYTES:
            raise _wrong(
                f"the file has {size} bytes; the length of the header alone takes {LENGTH_BYTES}"
            )
        prefix = _read_exactly(file, LENGTH_BYTES)
        if prefix.startswith(b"GGUF"):
            raise errors.FileFormatError(
                "This is a plain GGUF file, neither sealed nor a safetensors file; seal it with "
                "pyccmem.gguf.seal() or `pyccmem encrypt`."
            )
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise _wrong(
                f"it announces a header of {length} bytes; the format allows {MAX_HEADER_BYTES}"
            )
        if length > size - LENGTH_BYTES:
            raise _wrong(
                f"it announces a header of {length} bytes and only {size - LENGTH_BYTES} follow; "
                f"the file is cut short or no safetensors file"
            )
        header = _read_exactly(file, length)
    except OSError as error:
        if isinstance(error, errors.PyccmemError):
            raise
        raise _unreadable(name, error) from None
    data_start = LENGTH_BYTES + length
    document = _parse(header)
    metadata = document.pop("__metadata__", {})
    entries = [_entry(tensor, fields, data_start, size) for tensor, fields in document.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _check_coverage(entries, data_start, size)
    return Header(prefix + header, metadata, entries, size)


def _unreadable(path: str | os.PathLike[str], error: Exception) -> errors.FileReadError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    answer = errors.FileReadError(
        f"The file {os.fspath(path)!r} cannot be read: {why}; name a file that this user may read."
    )
    return answer.of_system(error.errno, os.fspath(path)) if isinstance(error, OSError) else answer


def _wrong(what: str) -> errors.FileFormatError:
    return errors.FileFormatError(f"This is not a valid safetensors file: {what}.")


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    parts: list[bytes] = []
    missing = count
    while missing:
        part = file.read(missing)
        if not part:
            raise _wrong("it became shorter while it was read")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def shown(value: object) -> str:
    """Returns a value from the header as errors show it: ASCII, one line, short."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_object(text: str, what: str, wrong: Callable[[str], Exception]) -> dict[str, Any]:
    """Returns a JSON object. Refuses a name twice in an object, NaN, -0, and numbers that Python
    cannot convert: raises what `wrong` makes of a clause that begins with `what`."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    raise _Refused(f"has {shown(name)} twice")
                seen.add(name)
        return found

    def no_constant(name: str) -> None:
        raise _Refused(f"has {name}, which is not JSON")

    def no_negative_zero(number: str) -> int:
        if number == "-0":  # an integer to Python, a floating-point number to other parsers
            raise _Refused("has -0, which is no whole number")
        return int(number)

    try:
        document = json.loads(
            text,
            object_pairs_hook=no_duplicates,
            parse_constant=no_constant,
            parse_int=no_negative_zero if "-0" in text else None,
        )
        if not isinstance(document, dict):
            raise _Refused("is not an object")
    except _Refused as refusal:
        why = str(refusal)
    except RecursionError:
        why = "is nested too deeply"
    except json.JSONDecodeError as error:
        why = f"is not JSON ({error.msg} at character {error.pos})"
    except ValueError:  # a number of more digits than Python converts
        why = "has a number that is far too large"
    else:
        return document
    raise wrong(f"{what} {why}")


class _Refused(Exception):
    """Raised for a fault that the json module does not report; never leaves parse_object()."""


def _parse(header: bytes) -> dict[str, Any]:
    if header[:1] != b"{":
        raise _wrong("its header does not begin with '{'")
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong(f"byte {error.start} of its header is not UTF-8") from None
    document = parse_object(text, "its header", _wrong)
    metadata = document.get("__metadata__")
    if metadata is None:  # some writers spell missing metadata as null
        document.pop("__metadata__", None)
        return document
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise _wrong("its __metadata__ is not an object of strings")
    for name, value in metadata.items():
        if not (_is_unicode(name) and _is_unicode(value)):
            raise _wrong(f"the metadata {shown(name)} is not Unicode text")
    return document


def _is_unicode(text: str) -> bool:
    """Returns False for half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _counts(what: str, value: object, tensor: str) -> tuple[int, ...]:
    # type() and not isinstance(), because True and False are ints in Python.
    if not isinstance(value, list) or not all(
        type(number) is int and 0 <= number <= MAX_ELEMENTS for number in value
    ):
        raise _wrong(
            f"the {what} of tensor {shown(tensor)} is {shown(value)}; it must be a list of whole "
            f"numbers from 0 to 2^63 - 1"
        )
    return tuple(value)


def tensor_bytes(
    dtype: str, shape: tuple[int, ...], name: str, wrong: Callable[[str], Exception]
) -> int:
    """Returns how many bytes a tensor of a dtype of DTYPE_BITS has. Raises what `wrong` makes of a
    clause about the tensor, which it calls `name`."""
    elements = 1
    for extent in shape:
        elements *= extent
        if elements > MAX_ELEMENTS:
            raise wrong(f"the shape of tensor {name} has more than 2^63 - 1 elements")
    bits = elements * DTYPE_BITS[dtype]
    if bits % 8:
        raise wrong(f"tensor {name} does not fill whole bytes")
    return bits // 8


def _entry(tensor: str, fields: object, data_start: int, size: int) -> Entry:
    quoted = shown(tensor)
    if not _is_unicode(tensor):
        raise _wrong(f"the name {quoted} is not Unicode text")
    # Other fields are ignored, as the format's own library does.
    if not isinstance(fields, dict) or not all(name in fields for name in _FIELDS):
        raise _wrong(f"tensor {quoted} must have the fields {', '.join(_FIELDS)}")
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _wrong(
            f"the dtype of tensor {quoted} is {shown(dtype)}; the known ones are "
            f"{', '.join(DTYPE_BITS)}"
        )
    shape = _counts("shape", fields["shape"], tensor)
    offsets = _counts("data_offsets", fields["data_offsets"], tensor)
    nbytes = tensor_bytes(dtype, shape, quoted, _wrong)
    data_bytes = size - data_start
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        raise _wrong(
            f"the data_offsets of tensor {quoted} are {shown(list(offsets))}; they must be a begin "
            f"and an end within the {data_bytes} bytes of data"
        )
    begin, end = offsets
    if end - begin != nbytes:
        raise _wrong(
            f"tensor {quoted} has {end - begin} bytes; dtype {dtype} and shape "
            f"{shown(list(shape))} need {shown(nbytes)}"
        )
    return Entry(tensor, dtype, shape, data_start + begin, data_start + end)


def _check_coverage(entries: list[Entry], data_start: int, size: int) -> None:
    at = data_start
    for entry in entries:
        if entry.start != at:
            what = "overlaps the one before it" if entry.start < at else "follows a hole"
            raise _wrong(f"the data of tensor {shown(entry.name)} {what}")
        at = entry.end
    if at != size:
        raise _wrong(f"{size - at} bytes at its end belong to no tensor")
