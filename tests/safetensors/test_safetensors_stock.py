# SPDX-License-Identifier: Apache-2.0
"""Which files the format's own library takes and pyccmem refuses, and the other way round.

Hand-made headers, each unlike a good one in one place. Every difference is listed with its reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyccmem import errors
from pyccmem.files.safetensors_header import open_file, read_all

stock = pytest.importorskip("safetensors")

TENSOR = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
NUL8 = bytes(8)
U64 = 2**64 - 1

#: Refused by pyccmem alone. The format (README of safetensors) says "Duplicate keys are disallowed"
#: and, of the header, that it "must begin with a { character".
STRICTER = {
    "metadata twice in itself",
    "name twice",
    "leading ' '",
    "leading '\\n'",
    "tensor is a list of its fields",  # whatever its parser makes of it
    "shape [0,18446744073709551615], 0 bytes",  # no array has such a shape
    "shape [0,9223372036854775808], 0 bytes",
}


def file(text: str | bytes, data: bytes = NUL8, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def cases() -> Iterator[tuple[str, bytes]]:
    one = f'{{"a":{TENSOR}}}'
    yield "a good one", file(one)
    yield "no tensor", file("{}", b"")
    yield "no tensor, and data", file("{}", b"x")
    values = [
        *("null", "{}", "[]", '""', '"x"', "1", "true", '{"a":"b"}', '{"a":1}', '{"a":null}'),
        *('{"a":true}', '{"a":["b"]}', '{"a":{}}', '{"":""}', r'{"a":"\u0000"}', '{"a":1.5}'),
        *(r'{"a":"\ud800"}', r'{"\ud800":"a"}', r'{"a":"\ud83d\ude00"}', '{"format":"pt"}'),
    ]
    for value in values:
        yield f"metadata {value}", file(f'{{"__metadata__":{value},"a":{TENSOR}}}')
        yield f"metadata last {value}", file(f'{{"a":{TENSOR},"__metadata__":{value}}}')
    yield "metadata twice in itself", file(f'{{"__metadata__":{{"b":"1","b":"2"}},"a":{TENSOR}}}')
    yield "metadata twice", file(f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{TENSOR}}}')
    yield "name twice", file(f'{{"a":{TENSOR},"a":{TENSOR}}}')
    for text in (" ", "  ", "\n", "\t", "\r", "\0", " \n ", "x", "{}", "\ufeff", "\f"):
        yield f"padding {text!r}", file(one + text)
    for text in (" ", "\n", "\ufeff", "["):
        yield f"leading {text!r}", file(text + one)
    names = [
        *("", "a b", "a/b", "\u00e9", "__metadata__2", r"\u0000", r"\ud800", r"\ud83d\ude00"),
        *("x" * 5000, ".", r"\n", "\u202e", r"\"", "\x01", "\x7f", r"a\/b", r"a\x"),
    ]
    for name in names:
        yield f"name {name[:20]!r}", file(f'{{"{name}":{TENSOR}}}')
    sizes = {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "U16": 2,
        "I16": 2,
        "U32": 4,
        "I32": 4,
        "U64": 8,
        "I64": 8,
    }
    sizes |= {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
    sizes |= {"f32": 4, "float32": 4, "": 4, "I4": 1, "F128": 8, "E8M0": 1}
    for dtype, size in sizes.items():
        for n in (8, 7):
            fields = f'"dtype":"{dtype}","shape":[{8 // size}],"data_offsets":[0,{n}]'
            yield f"dtype {dtype}, {n} bytes", file(f'{{"a":{{{fields}}}}}', bytes(n))
    shapes = [
        *("[]", "[0]", "[1]", "[2]", "[2,1]", "[1,2,1,1,1,1,1,1,1,1]", "[2.0]", "[2e0]", '["2"]'),
        *("[-2]", "[-0]", "[null]", "null", "2", "{}", "[true]", f"[{U64}]", f"[{U64 + 1}]"),
        *(f"[{2**63}]", f"[0,{U64}]", f"[0,{2**63}]", "[4294967296,4294967296,0]", "[02]", "[2,]"),
        *("[4294967296,4294967296]", "[0,4294967296,4294967296]", "[2,0]"),
    ]
    for shape in shapes:
        for n in (8, 4, 0):
            fields = f'"dtype":"F32","shape":{shape},"data_offsets":[0,{n}]'
            yield f"shape {shape}, {n} bytes", file(f'{{"a":{{{fields}}}}}', bytes(n))
    places = [
        *("[0,8]", "[0,7]", "[0,9]", "[8,0]", "[1,9]", "[0]", "[]", "[0,8,8]", "[0.0,8.0]"),
        *("[0,8.0]", '["0","8"]', "[-0,8]", "[-1,7]", "null", "{}", "8", f"[0,{U64}]"),
        *(f"[0,{U64 + 1}]", "[true,8]", "[0,8e0]", '{"0":0}'),
    ]
    for place in places:
        yield (
            f"place {place}",
            file(f'{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{place}}}}}'),
        )
    dtype, shape, place = '"dtype":"F32"', '"shape":[2]', '"data_offsets":[0,8]'
    for fields in (
        *((dtype, shape), (dtype, place), (shape, place), (), (place, shape, dtype)),
        *((dtype, shape, place, '"x":1'), ('"x":null', dtype, shape, place)),
        *(
            (dtype, dtype, shape, place),
            ('"dtype":null', shape, place),
            ('"dtype":1', shape, place),
        ),
    ):
        yield f"fields {fields}", file(f'{{"a":{{{",".join(fields)}}}}}')
    for value in ("null", "[]", "1", '"x"', "true"):
        yield f"tensor is {value}", file(f'{{"a":{value}}}')
    yield "tensor is a list of its fields", file('{"a":["F32",[2],[0,8]]}')
    for first, second, n in (
        *(((0, 4), (4, 8), 8), ((4, 8), (0, 4), 8), ((0, 4), (5, 8), 8), ((0, 4), (3, 8), 8)),
        *(((0, 4), (4, 8), 9), ((0, 4), (4, 8), 7), ((0, 0), (0, 8), 8), ((0, 8), (0, 0), 8)),
        *(((0, 8), (8, 8), 8), ((4, 4), (0, 8), 8), ((0, 8), (0, 8), 8), ((1, 4), (4, 8), 8)),
        *(((9, 9), (0, 8), 8), ((0, 4), (0, 4), 4)),
    ):
        both = ",".join(
            f'"{name}":{{"dtype":"U8","shape":[{end - begin}],"data_offsets":[{begin},{end}]}}'
            for name, (begin, end) in zip("ab", (first, second), strict=True)
        )
        yield f"places {first}, {second} of {n} bytes", file(f"{{{both}}}", bytes(n))
    for text in ("[]", '"x"', "null", "1"):
        yield f"document {text}", file(text, b"")
    yield "not UTF-8", file(b'{"a\xff":' + TENSOR.encode() + b"}")
    yield "NaN", file('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}')
    yield "a comma too many", file(f'{{"a":{TENSOR},}}')
    yield "a comment", file(f'{{"a":{TENSOR}/* */}}')
    yield "single quotes", file("{'a':1}")
    yield "blanks inside", file(f'{{ "a" :\n{TENSOR} }}')
    yield "nested deeply", file('{"a":' + "[" * 200 + "]" * 200 + "}")
    for n, rest in ((0, b""), (0, b"{}"), (1, b"{"), (1 << 40, one.encode()), (U64, one.encode())):
        yield f"length {n} and {len(rest)} bytes", struct.pack("<Q", n) + rest
    yield "length one too small", file(one, length=len(one) - 1)
    yield "length eight too large", file(one, length=len(one) + 8)
    for n in (0, 7, 8):
        yield f"{n} zero bytes", bytes(n)


CASES = dict(cases())


def stock_reads(path: Path) -> object:
    try:
        with stock.safe_open(path, "np") as found:
            return sorted(found.keys()), found.metadata() or {}
    except stock.SafetensorError:
        return None


def pyccmem_reads(path: Path) -> object:
    try:
        with open_file(path) as found:
            header = read_all(found)
            return sorted(entry.name for entry in header.entries), header.metadata
    except errors.FileFormatError:
        return None


def test_there_are_enough() -> None:
    assert len(CASES) > 250 and set(CASES) >= STRICTER


def test_both_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file"
    differing, taken = {}, 0
    for name, content in CASES.items():
        path.write_bytes(content)
        theirs, ours = stock_reads(path), pyccmem_reads(path)
        taken += theirs is not None
        if theirs != ours:
            differing[name] = (theirs, ours)
    assert all(ours is None for _, ours in differing.values()), differing
    assert set(differing) == STRICTER, differing
    assert taken > 60, "most of the good ones were refused"
