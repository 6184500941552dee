# SPDX-License-Identifier: Apache-2.0
"""Hostile sealed files: mutates sound ones in every way that an attacker without the key has, and
counts what becomes of them.

    python tests/support/fuzz_sealed.py 100000 [SEED]

A mutated file must be refused, at the opening or at a read, with an exception of pyccmem. What is
accepted must be a sound file, byte for byte. The attacker owns files sealed for the same key: of
other tensors, of earlier contents, and the same file before its key was wrapped anew.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pyccmem
from pyccmem import errors
from pyccmem import safetensors as sealed

PAGE = 4096
#: What a hostile file may raise. InvalidKeyError: its header names another key.
REFUSALS = (errors.FileFormatError, errors.IntegrityError, errors.InvalidKeyError)


@dataclass
class Corpus:
    """Sound files by name, and the tensors that each holds."""

    key: pyccmem.Key
    files: dict[str, bytes]
    tensors: dict[str, dict[str, bytes]]


def contents(seed: int) -> dict[str, np.ndarray]:
    """Tensors of one page and of two, an empty one and a scalar; of the same form for each seed."""
    rng = np.random.default_rng(seed)
    return {
        "layer.weight": rng.standard_normal((36, 36)).astype(np.float32),
        "layer.bias": rng.standard_normal(36).astype(np.float32),
        "nothing": np.zeros((0, 4), np.float32),
        "step": np.array(seed, np.int64),
        "bytes": rng.integers(0, 256, 2 * PAGE, dtype=np.uint8),
    }


def make_corpus(directory: Path, key: pyccmem.Key) -> Corpus:
    """Sound files for one key, and the tensors of each."""
    corpus = Corpus(key, {}, {})
    path = directory / "sound"

    def keep(name: str, seed: int) -> None:
        corpus.files[name] = path.read_bytes()
        corpus.tensors[name] = {n: t.tobytes() for n, t in contents(seed).items()}

    for name, seed, hidden in (("old", 1, False), ("new", 2, False), ("hidden", 3, True)):
        sealed.save_file(
            contents(seed), path, key=key, metadata={"format": "pt"}, seal_names=hidden
        )
        keep(name, seed)
    sealed.rewrap_file(path, key, key)
    keep("hidden, rewrapped", 3)
    path.write_bytes(corpus.files["new"])
    sealed.rewrap_file(path, key, key)
    keep("new, rewrapped", 2)
    path.unlink()
    return corpus


# ---- what an attacker can do ----


def split(data: bytes) -> tuple[dict[str, Any], int]:
    """A file's header and where its data begin."""
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), start


def joined(header: Any, data: bytes) -> bytes:
    """A file of this header, padded as sealed ones are, and these data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text + data


def regions(data: bytes) -> list[tuple[int, int]]:
    """The length and the header, each blob that is not empty, and the table."""
    header, start = split(data)
    places = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return [(0, start)] + [(start + a, start + b) for a, b in sorted(places) if b > a]


def flip(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    begin, end = rng.choice(regions(data))
    at, bit = rng.randrange(begin, end), rng.randrange(8)
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def burst(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    begin, end = rng.choice(regions(data))
    at = rng.randrange(begin, end)
    count = min(rng.choice((1, 4, 16, 64, PAGE)), end - at)
    filler = rng.choice((rng.randbytes(count), bytes(count), b"\xff" * count))
    return data[:at] + filler + data[at + count :]


def cut(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data[: rng.randrange(0, len(data), 8)]
    if kind == 2:
        return data + rng.randbytes(rng.choice((1, 16, PAGE)))
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 8, 16, 24, PAGE)) :]


def splice(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    """A part of another sound file in the place of this one's, or of another region of it."""
    other = corpus.files[rng.choice(list(corpus.files))]
    begin, end = rng.choice(regions(data))
    if rng.randrange(2):
        first, last = rng.choice(regions(other))
        part = other[first:last]
    else:
        part = other[begin:end]
    if rng.randrange(2):
        part = part[: end - begin].ljust(end - begin, b"\0")
    return data[:begin] + part + data[end:]


def other_header(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    """The header of another file, with its tag or without it, before this one's data."""
    other = corpus.files[rng.choice(list(corpus.files))]
    (_, start), *_, (table, _) = regions(other)
    (_, own_start), *_, (own_table, _) = regions(data)
    mixed = other[:start] + data[own_start:]
    if rng.randrange(2) and own_table - own_start == table - start:
        place = own_table - own_start + start
        mixed = mixed[:place] + other[table : table + 16] + mixed[place + 16 :]
    return mixed


def swap(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    """Two pages, two tags, or two versions and tags of the table change places."""
    (_, start), *_, (table, end) = regions(data)
    kind = rng.randrange(3)
    if kind == 0:
        unit, first, last = PAGE, start, table
    elif kind == 1:
        unit, first, last = 16, table, end
    else:
        unit, first, last = 8, table, end
    places = range(first, last - unit + 1, unit)
    a, b = sorted(rng.sample(places, 2))
    return (
        data[:a] + data[b : b + unit] + data[a + unit : b] + data[a : a + unit] + data[b + unit :]
    )


def odd_value(rng: random.Random, value: Any) -> Any:
    """Another value for a field: near to what it is, or nothing like it."""
    near: list[Any] = []
    if isinstance(value, bool) or value is None:
        near = [not value]
    elif isinstance(value, int):
        near = [value + 1, value - 1, value * 2, -value, float(value), str(value), 2**64, 10**40]
    elif isinstance(value, str):
        at = rng.randrange(len(value) or 1)
        near = [
            value[:at] + rng.choice("0f9tZ\0\ud800") + value[at + 1 :],
            value[:-1],
            value + "00",
            value.upper(),
            value[::-1],
        ]
        near += ["F32", "I32", "U8", "BF16", "F4", "aes-128-xts", "scrypt", "key", "t0", "t1"]
    elif isinstance(value, list):
        near = [value[::-1], value[1:], [*value, 1], [*value, *value], [*value, 0]]
    elif isinstance(value, dict):
        names = list(value)
        rng.shuffle(names)
        near = [{name: value[name] for name in names}, dict(list(value.items())[1:])]
        near += [{**value, "more": 1}, list(value.items())]
    return rng.choice([*near, None, True, -1, 0, 1.5, "", [], {}, [[]], 2**63, {"a": {}}])


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    found = [prefix] if prefix else []
    if isinstance(value, dict):
        for name, item in value.items():
            found += paths(item, (*prefix, name))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            found += paths(item, (*prefix, at))
    return found


def edit(rng: random.Random, document: Any) -> Any:
    """One edit somewhere in a JSON document: a value, a name, an order, an exchange."""
    document = json.loads(json.dumps(document))
    places = paths(document)
    place = rng.choice(places)
    parent = document
    for step in place[:-1]:
        parent = parent[step]
    last = place[-1]
    kind = rng.randrange(6)
    if kind == 0 and isinstance(parent, dict):
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        items = [
            (rng.choice((n + "x", "t1", "")) if n == last else n, v) for n, v in parent.items()
        ]
        parent.clear()
        parent.update(items)
    elif kind == 2 and isinstance(parent, dict) and len(parent) > 1:
        a, b = rng.sample(list(parent), 2)
        parent[a], parent[b] = parent[b], parent[a]
    elif kind == 3 and isinstance(parent, dict):
        items = list(parent.items())
        rng.shuffle(items)
        parent.clear()
        parent.update(items)
    else:
        parent[last] = odd_value(rng, parent[last])
    return document


def edit_header(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    """The outer header, or the description in it, with one to three edits."""
    header, start = split(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        described = header.get("__metadata__", {}) if isinstance(header, dict) else {}
        text = described.get("pyccmem") if isinstance(described, dict) else None
        if isinstance(text, str) and rng.randrange(4):
            try:
                document = edit(rng, json.loads(text))
            except ValueError:
                continue
            described["pyccmem"] = json.dumps(document)
        else:
            header = edit(rng, header)
    return joined(header, data[start:])


def rename(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    """Two tensors exchange their names, shapes, blobs or all, consistently in both headers."""
    header, start = split(data)
    described = json.loads(header["__metadata__"]["pyccmem"])
    if "tensors" not in described:
        a, b = rng.sample([name for name in header if name != "__metadata__"], 2)
        header[a], header[b] = header[b], header[a]
        return joined(header, data[start:])
    tensors = described["tensors"]
    a, b = rng.sample(list(tensors), 2)
    kind = rng.randrange(3)
    if kind == 0:
        tensors[a], tensors[b] = tensors[b], tensors[a]
        tensors[a]["blob"], tensors[b]["blob"] = a, b
        header[a], header[b] = header[b], header[a]
    elif kind == 1:
        tensors[a + ".new"] = tensors.pop(a) | {"blob": a + ".new"}
        header[a + ".new"] = header.pop(a)
    else:
        for field in rng.sample(("dtype", "shape", "nbytes", "store_id", "table_mac"), 2):
            tensors[a][field], tensors[b][field] = tensors[b][field], tensors[a][field]
    header["__metadata__"]["pyccmem"] = json.dumps(described)
    return joined(header, data[start:])


def broken_json(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    """A header that is no JSON, or JSON that parsers disagree on."""
    start = 8 + int.from_bytes(data[:8], "little")
    text = data[8:start].rstrip()
    kind = rng.randrange(7)
    if kind == 0:
        depth = rng.choice((100, 10_000, 100_000))
        text = b'{"a":' * depth + b"1" + b"}" * depth
    elif kind == 1:
        text = text[:-1] + b"," + text[1:]  # every name twice
    elif kind == 2:
        text = text.replace(b"4096", rng.choice((b"NaN", b"1e400", b"-0", b"9" * 5000, b"4096.0")))
    elif kind == 3:
        text = text.replace(b"pyccmem", rng.choice((b"pyccmen", b"\\u0070yccmem", b"\xff")), 1)
    elif kind == 4:
        text = text.replace(b'\\"format\\":2', b'\\"format\\":' + rng.choice((b"1", b"0", b"2.0")))
    elif kind == 5:
        inner = "[" * 100_000
        text = json.dumps({"__metadata__": {"pyccmem": inner}}).encode()
    else:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice((b"{", b"}", b'"', b",", b" ", b"\\", b"\0")) + text[at + 1 :]
    return joined(text, data[start:])


def other_key(rng: random.Random, corpus: Corpus, data: bytes) -> bytes:
    """The wrapped key of another file, with its context or this file's, or parts of either; or the
    header of a file of format 1."""
    header, start = split(data)
    described = json.loads(header["__metadata__"]["pyccmem"])
    other, _ = split(corpus.files[rng.choice(list(corpus.files))])
    theirs = json.loads(other["__metadata__"]["pyccmem"])["key"]
    kind = rng.randrange(4)
    if kind == 0:
        described["key"] = theirs
    elif kind == 1:
        described["key"] = theirs | {"context": described["key"]["context"]}
    elif kind == 2:
        described["key"] |= {"bound": rng.choice((theirs["wrapped"], "", "00"))}
    else:
        described["format"] = 1
        described["key"] = {n: v for n, v in theirs.items() if n not in ("bound", "context")}
    header["__metadata__"]["pyccmem"] = json.dumps(described)
    return joined(header, data[start:])


MUTATIONS: dict[str, Callable[[random.Random, Corpus, bytes], bytes]] = {
    "bit flipped": flip,
    "bytes overwritten": burst,
    "cut or made longer": cut,
    "part of another file": splice,
    "header of another file": other_header,
    "pages or records swapped": swap,
    "header edited": edit_header,
    "key of another file": other_key,
    "tensors renamed or exchanged": rename,
    "JSON broken": broken_json,
}


# ---- what becomes of the files ----


def outcome(path: Path, corpus: Corpus, data: bytes, mmap: bool) -> str:
    """Loads a file and reads every tensor. Raises AssertionError for a file that was accepted and
    is not a sound one; other exceptions than REFUSALS leave it, too."""
    try:
        sealed.inspect_file(path)  # without the key: whatever it says, it must end well
        sealed.is_sealed(path)
    except REFUSALS:
        pass
    stage = "opening"
    try:
        weights = sealed.load_file(path, key=corpus.key, sealed=True, mmap=mmap)
        stage = "reading"
        read = {name: tensor[...].tobytes() for name, tensor in weights.items()}
    except REFUSALS as error:
        return f"{type(error).__name__} at the {stage}"
    finally:
        weights = None
    sound = [name for name, content in corpus.files.items() if content == data]
    assert sound, "a file that was changed was accepted"
    assert read == corpus.tensors[sound[0]], "a sound file gave other contents"
    return "unchanged, read as it was written"


def fuzz(count: int, seed: int, directory: Path, only: str | None = None) -> dict[str, Counter]:
    """Mutates `count` files; the outcomes by the kind of mutation. Raises AssertionError."""
    rng = random.Random(seed)
    found: dict[str, Counter] = {name: Counter() for name in MUTATIONS}
    with pyccmem.Key.generate() as key:
        corpus = make_corpus(directory, key)
        path = directory / "hostile"
        for number in range(count):
            data = corpus.files[rng.choice(list(corpus.files))]
            name = only or rng.choice(list(MUTATIONS))
            changed = MUTATIONS[name](rng, corpus, data)
            path.write_bytes(changed)
            try:
                found[name][outcome(path, corpus, changed, mmap=bool(number % 2))] += 1
            except BaseException:
                print(f"file {number} of seed {seed}: {name}", file=sys.stderr)
                raise
    return found


def main(words: list[str]) -> int:
    count, seed = int(words[0]) if words else 10_000, int(words[1]) if len(words) > 1 else 0
    began = time.monotonic()
    # In memory where there is such a directory: nothing is worth a disk's time here.
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as directory:
        found = fuzz(count, seed, Path(directory))
    total: Counter = Counter()
    for name, outcomes in found.items():
        print(f"{name}: {sum(outcomes.values())}")
        for what, number in sorted(outcomes.items()):
            print(f"    {number:7}  {what}")
        total += outcomes
    print(f"all: {sum(total.values())} in {time.monotonic() - began:.0f} s")
    for what, number in sorted(total.items()):
        print(f"    {number:7}  {what}")
    print("none that was changed was accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
