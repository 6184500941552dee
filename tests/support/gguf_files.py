# SPDX-License-Identifier: Apache-2.0
"""Makes GGUF files byte by byte, sound ones and others, without the package gguf; and mutates them.

    python tests/support/gguf_files.py 100000 [SEED]

prints what became of so many mutants.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyccmem import errors
from pyccmem.gguf import TYPES, Header
from pyccmem.gguf._header import parse

U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 4, 5, 6, 7, 8, 9, 10, 12

LETTERS = dict(zip(range(13), "BbHhIif?--Qqd", strict=True))


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind: int, what: Any) -> bytes:
    """A value of the format; of an array, `what` is the type within and the values."""
    if kind == STRING:
        return text(what)
    if kind == ARRAY:
        inner, values = what
        return struct.pack("<IQ", inner, len(values)) + b"".join(value(inner, v) for v in values)
    return struct.pack(f"<{LETTERS[kind]}", what)


@dataclass
class Tensor:
    name: str | bytes
    kind: int
    dims: Sequence[int]  # the innermost first
    data: bytes
    offset: int | None = None  # None: behind the one before it


@dataclass
class Draft:
    """A file before it is written: everything in it can be other than it should."""

    pairs: list[tuple[str | bytes, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    filler: int = 0  # the bytes between tensors
    behind: bytes = b""
    ntensors: int | None = None
    npairs: int | None = None

    def bytes(self) -> bytes:
        counts = (
            len(self.tensors) if self.ntensors is None else self.ntensors,
            len(self.pairs) if self.npairs is None else self.npairs,
        )
        out = b"GGUF" + struct.pack("<IQQ", self.version, *counts)
        for key, kind, what in self.pairs:
            out += text(key) + struct.pack("<I", kind) + value(kind, what)
        data = bytearray()
        for tensor in self.tensors:
            offset = tensor.offset
            if offset is None:
                data += bytes([self.filler]) * (-len(data) % self.alignment)
                offset = len(data)
                data += tensor.data
            out += text(tensor.name) + struct.pack("<I", len(tensor.dims))
            out += struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims)
            out += struct.pack("<IQ", tensor.kind, offset)
        if self.tensors:
            out += bytes([self.filler]) * (-len(out) % self.alignment)
        return out + bytes(data) + self.behind


def sound(seed: int = 0, *, filler: int = 0, behind: bytes = b"") -> Draft:
    """A small file with every type of metadata and tensors of several types."""
    rng = np.random.default_rng(seed)
    draft = Draft(filler=filler, behind=behind)
    draft.pairs = [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "Ä model"),
        *((f"scalar.{kind}", kind, 1) for kind in (0, 1, 2, 3, U32, I32, U64, 11)),
        ("scalar.f32", F32, 0.5),
        ("scalar.f64", F64, -2.5),
        ("scalar.bool", BOOL, True),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "ü", "", "word"])),
        ("tokenizer.ggml.scores", ARRAY, (F32, [0.0, -1.0, 2.0, 3.5])),
        ("flags", ARRAY, (BOOL, [True, False])),
        ("nested", ARRAY, (ARRAY, [(I32, [1, 2]), (STRING, ["a"]), (ARRAY, [(0, [])])])),
        ("nothing", ARRAY, (U64, [])),
        ("general.alignment", U32, draft.alignment),
    ]
    for kind in (0, 1, 8, 12, 14, 30):
        elements, nbytes = TYPES[kind].elements, TYPES[kind].nbytes
        data = rng.integers(0, 256, 3 * 2 * nbytes, dtype=np.uint8).tobytes()
        draft.tensors.append(Tensor(f"blk.0.{TYPES[kind]}.weight", kind, (2 * elements, 3), data))
    draft.tensors.append(Tensor("scalar", 0, (), bytes(4)))
    draft.tensors.append(Tensor("empty", 8, (32, 0), b""))
    return draft


def parsed(data: bytes) -> Header:
    """What the strict parser says of these bytes."""
    whole = np.frombuffer(data, np.uint8)

    def read(part: Any, at: int) -> None:
        part[:] = whole[at : at + len(part)]

    return parse(len(data), read)


# ---- a parser that checks nothing, as a control ----


def unchecked(data: bytes) -> dict[str, tuple[int, int, int]]:
    """Type, begin and end of each tensor, by a reader that believes the file. Whatever Python
    raises on the way leaves it."""
    at = 8
    ntensors, npairs = struct.unpack_from("<QQ", data, at)
    at += 16

    def word() -> str:
        nonlocal at
        (count,) = struct.unpack_from("<Q", data, at)
        at += 8 + count
        return data[at - count : at].decode()

    def number(letter: str) -> Any:
        nonlocal at
        (found,) = struct.unpack_from(f"<{letter}", data, at)
        at += struct.calcsize(f"<{letter}")
        return found

    def any_value(kind: int) -> Any:
        if kind == STRING:
            return word()
        if kind == ARRAY:
            inner, count = number("I"), number("Q")
            if count > 10_000:
                raise MemoryError("a reader that believes this asks for too much")
            return [any_value(inner) for _ in range(count)]
        return number(LETTERS[kind])

    if max(ntensors, npairs) > 10_000:
        raise MemoryError("a reader that believes this asks for too much")
    pairs = {word(): any_value(number("I")) for _ in range(npairs)}
    described = []
    for _ in range(ntensors):
        name, count = word(), number("I")
        if count > 10_000:
            raise MemoryError("a reader that believes this asks for too much")
        described.append((name, [number("Q") for _ in range(count)], number("I"), number("Q")))
    alignment = pairs.get("general.alignment", 32)
    start = -(-at // alignment) * alignment
    found = {}
    for name, dims, kind, offset in described:
        nbytes = TYPES[kind].nbytes
        for extent in dims:
            nbytes *= extent
        begin = start + offset
        found[name] = (kind, begin, begin + nbytes // TYPES[kind].elements)
    return found


# ---- mutations ----

ODD = (0, 1, 2, 3, 7, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def flip(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def burst(rng: random.Random, data: bytes) -> bytes:
    at, count = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 16, 64))
    new = rng.choice((rng.randbytes(count), bytes(count), b"\xff" * count))
    return data[:at] + new[: len(data) - at] + data[at + count :]


def number(rng: random.Random, data: bytes) -> bytes:
    """A number of 4 or 8 bytes becomes an extreme one."""
    size = rng.choice((4, 8))
    at = rng.randrange(len(data) - size)
    new = (rng.choice(ODD) % 2 ** (8 * size)).to_bytes(size, "little")
    return data[:at] + new + data[at + size :]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def shift(rng: random.Random, data: bytes) -> bytes:
    """Bytes are taken out, or put in."""
    at, count = rng.randrange(len(data)), rng.choice((1, 4, 8, 12, 32))
    if rng.randrange(2):
        return data[:at] + data[at + count :]
    return data[:at] + rng.randbytes(count) + data[at:]


def exchange(rng: random.Random, data: bytes) -> bytes:
    """Two parts change places."""
    size = rng.choice((4, 8, 12, 24))
    a, b = sorted(rng.sample(range(0, len(data) - size), 2))
    if b < a + size:
        return flip(rng, data)
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


def redraft(rng: random.Random, data: bytes) -> bytes:
    """One part of the description is other than it should be, and all lengths agree with it."""
    draft = sound(rng.randrange(3))
    kind = rng.randrange(9)
    tensor = rng.choice(draft.tensors)
    if kind == 0:
        tensor.offset = rng.choice((*ODD, 1, 32, 64, 2**64 - 32))
    elif kind == 1:
        tensor.dims = [rng.choice(ODD) for _ in range(rng.choice((1, 2, 4, 5, 9)))]
    elif kind == 2:
        tensor.kind = rng.choice((4, 5, 42, 99, 2**32 - 1, *TYPES))
    elif kind == 3:
        draft.ntensors = rng.choice(ODD)
    elif kind == 4:
        draft.npairs = rng.choice(ODD)
    elif kind == 5:
        draft.pairs[-1] = ("general.alignment", U32, rng.choice((0, 1, 3, 8, 33, 4096, 2**31)))
    elif kind == 6:
        tensor.name = rng.choice((draft.tensors[0].name, b"\xff\xfe", "", "x" * 100))
    elif kind == 7:
        draft.pairs.append((rng.choice((draft.pairs[0][0], b"\x80", "")), BOOL, True))
    else:
        deep: Any = (0, [])
        for _ in range(rng.choice((2, 15, 16, 17, 1000, 20_000))):
            deep = struct.pack("<IQ", ARRAY, 1) + (value(ARRAY, deep) if deep == (0, []) else deep)
        draft.pairs.append(("deep", STRING, ""))
        whole = draft.bytes()
        place = whole.index(text("deep")) + len(text("deep"))
        return whole[:place] + struct.pack("<I", ARRAY) + deep + whole[place + 12 :]
    return draft.bytes()


MUTATIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "bit flipped": flip,
    "bytes overwritten": burst,
    "number made extreme": number,
    "cut": cut,
    "bytes taken out or put in": shift,
    "parts exchanged": exchange,
    "description changed": redraft,
}


def outcome(data: bytes) -> str:
    """Parses a mutant. Raises AssertionError for one that is accepted and not sound; what is not an
    exception of ours leaves it, too."""
    try:
        header = parsed(data)
    except errors.FileFormatError:
        return "refused"
    assert len(header.raw) <= header.size == len(data)
    at = len(header.raw)
    places = [*header.gaps(), *((t.start, t.end) for t in header.in_order() if t.nbytes)]
    for begin, end in sorted(places):
        assert at == begin < end, "the parts do not fill the file"
        at = end
    assert at == header.size
    for key in header.metadata:
        header.metadata[key]
    believed = unchecked(data)
    assert believed == {t.name: (t.type.number, t.start, t.end) for t in header.tensors.values()}
    return "accepted"


def believes(data: bytes) -> str:
    """What the parser that checks nothing makes of a mutant: "crashed", "outside" for tensors that
    are not in the file, or "believed"."""
    try:
        found = unchecked(data)
    except Exception:
        return "crashed"
    outside = any(not 0 <= begin <= end <= len(data) for _, begin, end in found.values())
    return "outside" if outside else "believed"


def fuzz(count: int, seed: int, only: str | None = None) -> Counter[tuple[str, str, str]]:
    """Counts mutants by mutation, by what we and by what the control made of them."""
    rng = random.Random(seed)
    bases = [sound(0).bytes(), sound(1, filler=7, behind=b"more").bytes(), sound(2).bytes()]
    # The header alone: most of a random mutant's bytes are to be in it.
    ends = [len(parsed(base).raw) for base in bases]
    names = list(MUTATIONS) if only is None else [only]
    found: Counter[tuple[str, str, str]] = Counter()
    for _ in range(count):
        which = rng.randrange(len(bases))
        base, end = bases[which], ends[which]
        name = rng.choice(names)
        mutate = MUTATIONS[name]
        if name in ("description changed", "cut") or not rng.randrange(8):
            data = mutate(rng, base)
        else:
            data = mutate(rng, base[:end]) + base[end:]
        found[name, outcome(data), believes(data)] += 1
    return found


def main() -> None:
    count = int(sys.argv[1])
    started = time.monotonic()
    for parts, number_of in sorted(fuzz(count, int((sys.argv[2:] or ["1"])[0])).items()):
        print(*parts, number_of, sep=", ")
    print(f"{count} mutants in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
