# SPDX-License-Identifier: Apache-2.0
"""The reader of safetensors headers: what it accepts lies in the file, all else is refused."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from pyccmem import errors
from pyccmem.files.safetensors_header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    Entry,
    open_file,
    read_header,
)

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

try:
    import safetensors
except ImportError:  # the reference is a second opinion, not a requirement
    safetensors = None  # type: ignore[assignment]


def file_bytes(header: Any, data: int | bytes = 0, length: int | None = None) -> bytes:
    """A file with this header (an object, or its text) and so much data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    tail = bytes(data) if isinstance(data, int) else data
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def tensor(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {
    "__metadata__": {"format": "pt"},
    "second": tensor("BF16", [2, 3], 8, 20),
    "first": tensor("F32", [2], 0, 8),
    "empty": tensor("I64", [0, 5], 20, 20),
    "scalar": tensor("F64", [], 20, 28),
}
GOOD_FILE = file_bytes(GOOD, 28)


def read(content: bytes) -> list[Entry]:
    return read_header(io.BytesIO(content))


def refused(content: bytes) -> str:
    with pytest.raises(errors.FileFormatError) as caught:
        read(content)
    message = str(caught.value)
    assert message.isascii() and "\n" not in message and len(message) < 600
    return message


def test_entries_are_in_file_order_with_absolute_offsets() -> None:
    data = len(GOOD_FILE) - 28
    file = io.BytesIO(GOOD_FILE)
    assert read_header(file) == [
        Entry("first", "F32", (2,), data, data + 8),
        Entry("second", "BF16", (2, 3), data + 8, data + 20),
        Entry("empty", "I64", (0, 5), data + 20, data + 20),
        Entry("scalar", "F64", (), data + 20, data + 28),
    ]
    assert file.tell() == data


def test_no_tensors() -> None:
    assert read(file_bytes({})) == []
    assert read(file_bytes(b"{}   ")) == []
    assert read(file_bytes({"__metadata__": {}})) == []
    assert read(file_bytes({"__metadata__": None})) == []
    assert read(file_bytes({"a": {**tensor("U8", [1], 0, 1), "x": 1}}, 1))[0].shape == (1,)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype(dtype: str) -> None:
    nbytes = DTYPE_BITS[dtype]
    (entry,) = read(file_bytes({"t": tensor(dtype, [2, 4], 0, nbytes)}, nbytes))
    assert (entry.dtype, entry.nbytes) == (dtype, nbytes)
    assert "need" in refused(file_bytes({"t": tensor(dtype, [2, 4], 0, nbytes + 1)}, nbytes + 1))


@pytest.mark.skipif(safetensors is None, reason="needs the reference implementation")
def test_what_the_reference_writes(tmp_path: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    import numpy as np

    arrays = {
        f"layer.{i}": np.full((i, 3), i, dtype=kind)
        for i, kind in enumerate((np.float32, np.float16, np.int8, np.uint64, np.bool_, np.float64))
    }
    path = tmp_path / "model.safetensors"
    numpy_files.save_file(arrays, path, metadata={"a": "b"})
    with open_file(path) as file:
        entries = read_header(file)
    content = path.read_bytes()
    assert {e.name for e in entries} == set(arrays)
    for entry in entries:
        assert entry.shape == arrays[entry.name].shape
        assert content[entry.start : entry.end] == arrays[entry.name].tobytes()


BAD: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes"),
    "seven bytes": (b"1234567", "7 bytes"),
    "no header": (struct.pack("<Q", 0), "does not begin"),
    "longer than the file": (file_bytes(b"{}", length=3), "cut short"),
    "huge length": (file_bytes(b"{}", length=2**64 - 1), "format allows"),
    "just too long": (file_bytes(b"{}", length=MAX_HEADER_BYTES + 1), "format allows"),
    "space before": (file_bytes(b" {}"), "does not begin"),
    "an array": (file_bytes(b"[]"), "does not begin"),
    "two values": (file_bytes(b"{}{}"), "not JSON"),
    "cut JSON": (file_bytes(b'{"a": {'), "not JSON"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "not UTF-8"),
    "a NUL": (file_bytes(b"{}\0"), "not JSON"),
    "nested": (file_bytes(b'{"a":' + b"[" * 100_000), "nested"),
    "nested objects": (file_bytes(b'{"a":' * 100_000), "nested"),
    "NaN": (file_bytes(b'{"a": NaN}'), "NaN"),
    "5000 digits": (file_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "too large"),
    "metadata": (file_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata list": (file_bytes({"__metadata__": []}), "__metadata__"),
    "twice": (file_bytes(b'{"a": 1, "a": 1}'), "twice"),
    "field twice": (file_bytes(b'{"a": {"dtype": "U8", "dtype": "U8"}}'), "twice"),
    "half a surrogate": (file_bytes(b'{"\\ud800": 1}'), "Unicode"),
    "not an object": (file_bytes({"a": 5}), "must have the fields"),
    "field missing": (file_bytes({"a": {"dtype": "U8", "shape": []}}), "must have the fields"),
    "dtype": (file_bytes({"a": tensor("F31", [1], 0, 4)}, 4), "dtype"),
    "dtype a list": (file_bytes({"a": tensor(["F32"], [1], 0, 4)}, 4), "dtype"),  # type: ignore[arg-type]
    "negative shape": (file_bytes({"a": tensor("U8", [-1, -4], 0, 4)}, 4), "shape"),
    "boolean shape": (file_bytes({"a": tensor("U8", [True], 0, 1)}, 1), "shape"),
    "float shape": (file_bytes({"a": tensor("U8", [1.0], 0, 1)}, 1), "shape"),
    "shape a number": (file_bytes({"a": {**tensor("U8", [], 0, 1), "shape": 1}}, 1), "shape"),
    "vast shape": (file_bytes({"a": tensor("U8", [2**62, 4], 0, 1)}, 1), "elements"),
    "vast, then zero": (file_bytes({"a": tensor("U8", [2**62, 4, 0], 0, 0)}), "elements"),
    "bits": (file_bytes({"a": tensor("F4", [3], 0, 1)}, 1), "whole bytes"),
    "negative offset": (file_bytes({"a": tensor("U8", [4], -4, 0)}, 4), "data_offsets"),
    "reversed": (file_bytes({"a": tensor("U8", [4], 4, 0)}, 4), "data_offsets"),
    "three offsets": (
        file_bytes({"a": {**tensor("U8", [4], 0, 4), "data_offsets": [0, 2, 4]}}, 4),
        "data_offsets",
    ),
    "beyond the end": (file_bytes({"a": tensor("U8", [5], 0, 5)}, 4), "data_offsets"),
    "far beyond": (file_bytes({"a": tensor("U8", [4], 2**63 - 5, 2**63 - 1)}, 4), "data_offsets"),
    "beyond 64 bits": (file_bytes({"a": tensor("U8", [4], 2**64, 2**64 + 4)}, 4), "data_offsets"),
    "size": (file_bytes({"a": tensor("F32", [2], 0, 4)}, 4), "need"),
    "hole first": (file_bytes({"a": tensor("U8", [3], 1, 4)}, 4), "hole"),
    "hole": (
        file_bytes({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [2], 2, 4)}, 4),
        "hole",
    ),
    "overlap": (
        file_bytes({"a": tensor("U8", [3], 0, 3), "b": tensor("U8", [2], 2, 4)}, 4),
        "overlaps",
    ),
    "same place": (
        file_bytes({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 0, 4)}, 4),
        "overlaps",
    ),
    "more data": (file_bytes({"a": tensor("U8", [3], 0, 3)}, 4), "belong to no tensor"),
    "only data": (file_bytes({}, 4), "belong to no tensor"),
    "terminal escapes": (file_bytes({"\x1b[2J\n": 5}), "x1b"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    content, words = BAD[case]
    assert words in refused(content)


@pytest.mark.parametrize("cut", range(len(GOOD_FILE)))
def test_cut_short_anywhere(cut: int) -> None:
    refused(GOOD_FILE[:cut])


def check_consistent(content: bytes) -> bool:
    """What is accepted lies in the file, covers it, and the reference accepts it too."""
    try:
        entries = read(content)
    except errors.FileFormatError:
        return False
    at = 8 + int.from_bytes(content[:8], "little")
    for entry in entries:
        elements = 1
        for extent in entry.shape:
            elements *= extent
        assert entry.start == at and elements * DTYPE_BITS[entry.dtype] == 8 * entry.nbytes
        at = entry.end
    assert at == len(content)
    if safetensors is not None and hasattr(safetensors, "deserialize"):
        assert len(safetensors.deserialize(content)) == len(entries)
    return True


def test_the_consistency_check_accepts_a_good_file() -> None:
    assert check_consistent(GOOD_FILE)


EDITS = st.lists(
    st.tuples(
        st.integers(0, len(GOOD_FILE) - 1),
        st.sampled_from(["set", "delete", "insert"]),
        st.one_of(st.sampled_from(list(b'0123456789-,:{}[]" .eE\\un')), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=4,
)


@hypothesis.settings(max_examples=3000)
@hypothesis.given(edits=EDITS, repair=st.booleans())
def test_mutated_bytes(edits: list[tuple[int, str, int]], repair: bool) -> None:
    """`repair` sets the length to that of the edited header, so that the JSON is reached."""
    content = bytearray(GOOD_FILE)
    for at, kind, value in edits:
        at = min(at, len(content))
        if kind == "insert":
            content.insert(at, value)
        elif at < len(content):
            if kind == "set":
                content[at] = value
            else:
                del content[at]
    if repair and len(content) >= 36:
        content[:8] = struct.pack("<Q", len(content) - 36)
    check_consistent(bytes(content))


NUMBERS = st.one_of(
    st.integers(-2, 9), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63)])
)
VALUES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.floats(allow_nan=False), st.text(max_size=3)
)


@hypothesis.settings(max_examples=2000)
@hypothesis.given(
    tensors=st.lists(
        st.tuples(
            st.sampled_from([*DTYPE_BITS, "F31", ""]),
            st.one_of(st.lists(NUMBERS, max_size=3), VALUES),
            st.one_of(st.lists(NUMBERS, min_size=1, max_size=3), VALUES),
        ),
        max_size=3,
    ),
    data=st.integers(0, 16),
)
def test_arbitrary_fields(tensors: list[tuple[str, Any, Any]], data: int) -> None:
    header = {
        f"t{i}": {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for i, (dtype, shape, offsets) in enumerate(tensors)
    }
    check_consistent(file_bytes(header, data))


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    shapes=st.lists(
        st.tuples(
            st.text(max_size=5).filter(lambda name: name != "__metadata__"),
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from(["U8", "BF16", "F32", "C64", "BOOL", "I64"]),
        ),
        max_size=5,
        unique_by=lambda item: item[0],
    )
)
def test_good_files_are_accepted(shapes: list[tuple[str, list[int], str]]) -> None:
    header, at = {}, 0
    for name, shape, dtype in shapes:
        nbytes = DTYPE_BITS[dtype] // 8
        for extent in shape:
            nbytes *= extent
        header[name] = tensor(dtype, shape, at, at + nbytes)
        at += nbytes
    entries = read(file_bytes(header, at))
    assert {e.name: list(e.shape) for e in entries} == {name: shape for name, shape, _ in shapes}


def test_a_file_that_shrinks_while_read() -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size) if self.tell() < 8 else b""

    with pytest.raises(errors.FileFormatError, match="shorter"):
        read_header(Shrinking(GOOD_FILE))


def test_reads_of_a_few_bytes_at_a_time() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(3, size or 0))

    assert read_header(Slow(GOOD_FILE)) == read(GOOD_FILE)


def test_the_data_is_not_read(tmp_path: Path) -> None:
    """A header for a terabyte in a sparse file takes no time and no memory."""
    path = tmp_path / "sparse.safetensors"
    size = 1 << 40
    path.write_bytes(file_bytes({"t": tensor("U8", [size], 0, size)}))
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("the file system has no room for a sparse terabyte")
    with open_file(path) as file:
        assert read_header(file)[0].nbytes == size


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe", "a\0b", "/dev/null"):
        with pytest.raises(errors.FileReadError) as caught:
            open_file(path)
        assert isinstance(caught.value, OSError) and str(caught.value).endswith(".")
