# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file, checked before anything is read by it.

The format (https://github.com/huggingface/safetensors, section "Format"): eight bytes with the
header's length as a little-endian integer, the header as a JSON object in UTF-8 that begins with
"{" and may be padded with spaces, then the tensors' data up to the end of the file. The header
gives each tensor a dtype, a shape and its place in the data; the tensors must fill the data without
overlap and without holes. Whatever breaks one of these rules is refused, so that the offsets handed
out always lie inside the file, and an entry's length is what its dtype and shape need.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import Any, BinaryIO

from . import errors

__all__ = ["DTYPE_BITS", "MAX_HEADER_BYTES", "Entry", "open_file", "read_header"]

#: Longest header that is read, in bytes; the format's own limit.
MAX_HEADER_BYTES = 100_000_000

#: Bits of one element of each dtype of the format, by the name it has in a header.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}

_LENGTH_BYTES = 8
_FIELDS = ("dtype", "shape", "data_offsets")
_MOST_ELEMENTS = 2**63 - 1


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


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading, without Python's own buffer. Raises FileReadError."""
    try:
        file = open(path, "rb", buffering=0, opener=_open_at_once)  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise errors.FileReadError(
            f"{os.fspath(path)!r} is not a regular file; name a safetensors file."
        )
    return file


def _open_at_once(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK)


def read_header(file: BinaryIO) -> list[Entry]:
    """The tensors of an open safetensors file, in the order of their data.

    Reads the header and nothing more, and leaves the position at the first byte of the data.
    Raises FileFormatError with what is wrong, FileReadError when the system refuses a read.
    """
    name = str(getattr(file, "name", "the file"))
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size < _LENGTH_BYTES:
            raise _wrong(
                f"the file has {size} bytes; the length of the header alone takes {_LENGTH_BYTES}"
            )
        length = int.from_bytes(_read_exactly(file, _LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise _wrong(
                f"it announces a header of {length} bytes; the format allows {MAX_HEADER_BYTES}"
            )
        if length > size - _LENGTH_BYTES:
            raise _wrong(
                f"it announces a header of {length} bytes and only {size - _LENGTH_BYTES} follow; "
                f"the file is cut short or no safetensors file"
            )
        header = _read_exactly(file, length)
    except OSError as error:
        if isinstance(error, errors.PyccmemError):
            raise
        raise _unreadable(name, error) from None
    data_start = _LENGTH_BYTES + length
    entries = [
        _entry(tensor, fields, data_start, size)
        for tensor, fields in _parse(header).items()
        if tensor != "__metadata__"
    ]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _check_coverage(entries, data_start, size)
    return entries


def _unreadable(path: str | os.PathLike[str], error: Exception) -> errors.FileReadError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    answer = errors.FileReadError(
        f"The file {os.fspath(path)!r} cannot be read: {why}; name a file that this user may read."
    )
    if isinstance(error, OSError):
        answer.errno, answer.filename = error.errno, os.fspath(path)
    return answer


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


def _shown(value: object) -> str:
    """A value out of the header for an error message: ASCII, one line, short."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _wrong(f"its header has {_shown(name)} twice")
            seen.add(name)
    return found


def _no_constant(name: str) -> None:
    raise _wrong(f"its header has {name}, which is not JSON")


def _parse(header: bytes) -> dict[str, Any]:
    if header[:1] != b"{":
        raise _wrong("its header does not begin with '{'")
    try:
        document = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
        )
    except errors.FileFormatError:
        raise
    except RecursionError:
        raise _wrong("its header is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise _wrong(f"byte {error.start} of its header is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _wrong(f"its header is not JSON ({error.msg} at character {error.pos})") from None
    except ValueError:  # a number of more digits than Python converts
        raise _wrong("its header has a number that is far too large") from None
    assert isinstance(document, dict), "JSON that begins with '{' is an object"
    metadata = document.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise _wrong("its __metadata__ is not an object of strings")
    return document


def _counts(what: str, value: object, tensor: str) -> tuple[int, ...]:
    # type() rather than isinstance(): true and false are numbers to Python.
    if not isinstance(value, list) or not all(
        type(number) is int and 0 <= number <= _MOST_ELEMENTS for number in value
    ):
        raise _wrong(
            f"the {what} of tensor {_shown(tensor)} is {_shown(value)}; it must be a list of whole "
            f"numbers from 0 to 2^63 - 1"
        )
    return tuple(value)


def _entry(tensor: str, fields: object, data_start: int, size: int) -> Entry:
    shown = _shown(tensor)
    try:
        tensor.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise _wrong(f"the name {shown} is not Unicode text") from None
    if not isinstance(fields, dict) or sorted(fields) != sorted(_FIELDS):
        raise _wrong(f"tensor {shown} must have exactly the fields {', '.join(_FIELDS)}")
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _wrong(
            f"the dtype of tensor {shown} is {_shown(dtype)}; the known ones are "
            f"{', '.join(DTYPE_BITS)}"
        )
    shape = _counts("shape", fields["shape"], tensor)
    offsets = _counts("data_offsets", fields["data_offsets"], tensor)
    elements = 1
    for extent in shape:
        elements *= extent
        if elements > _MOST_ELEMENTS:
            raise _wrong(f"the shape of tensor {shown} has more than 2^63 - 1 elements")
    bits = elements * DTYPE_BITS[dtype]
    if bits % 8:
        raise _wrong(f"tensor {shown} does not fill whole bytes")
    data_bytes = size - data_start
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        raise _wrong(
            f"the data_offsets of tensor {shown} are {_shown(list(offsets))}; they must be a begin "
            f"and an end within the {data_bytes} bytes of data"
        )
    begin, end = offsets
    if end - begin != bits // 8:
        raise _wrong(
            f"tensor {shown} has {end - begin} bytes; dtype {dtype} and shape "
            f"{_shown(list(shape))} need {_shown(bits // 8)}"
        )
    return Entry(tensor, dtype, shape, data_start + begin, data_start + end)


def _check_coverage(entries: list[Entry], data_start: int, size: int) -> None:
    at = data_start
    for entry in entries:
        if entry.start != at:
            what = "overlaps the one before it" if entry.start < at else "follows a hole"
            raise _wrong(f"the data of tensor {_shown(entry.name)} {what}")
        at = entry.end
    if at != size:
        raise _wrong(f"{size - at} bytes at its end belong to no tensor")
