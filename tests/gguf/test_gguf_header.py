# SPDX-License-Identifier: Apache-2.0
"""Headers of GGUF files: what sound ones say, and that others are refused, in bounded time and
memory."""

from __future__ import annotations

import gc
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf_files as making
import numpy as np
import pytest
from gguf_files import ARRAY, BOOL, STRING, U32, Draft, Tensor, parsed, sound

import pyccmem
from pyccmem import errors
from pyccmem.gguf import TYPES, is_gguf, read_header


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    draft = sound(filler=9, behind=b"behind")
    path.write_bytes(draft.bytes())
    assert is_gguf(path)
    header = read_header(path)
    assert (header.version, header.alignment, header.size) == (3, 32, path.stat().st_size)
    assert list(header.metadata) == [key for key, _, _ in draft.pairs]
    metadata = header.metadata
    assert metadata["general.name"] == "Ä model"
    assert metadata["scalar.bool"] is True and metadata["scalar.f64"] == -2.5
    assert metadata["tokenizer.ggml.tokens"] == ["<s>", "ü", "", "word"]
    assert metadata["flags"] == [True, False] and metadata["nothing"] == []
    assert metadata["nested"] == [[1, 2], ["a"], [[]]]
    assert metadata.count("tokenizer.ggml.tokens") == 4 and metadata.count("scalar.f32") == 1
    assert metadata.is_text_array("tokenizer.ggml.tokens") and not metadata.is_text_array("flags")
    assert not metadata.is_text_array("general.name")
    scores = metadata.array("tokenizer.ggml.scores")
    assert scores.dtype == np.float32 and scores.tolist() == [0, -1, 2, 3.5]
    data = path.read_bytes()
    for tensor in draft.tensors:
        info = header.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.dims)) and info.type.number == tensor.kind
        assert data[info.start : info.end] == tensor.data
    assert {data[begin:end].strip(b"\x09") for begin, end in header.gaps()} == {b"", b"behind"}
    metadata.forget()
    with pytest.raises(errors.ClosedFileError):
        metadata["general.name"]


def test_version_2_and_other_alignments_are_read() -> None:
    for alignment in (1, 8, 64, 4096):
        draft = sound()
        draft.version, draft.alignment = 2, alignment
        draft.pairs[-1] = ("general.alignment", U32, alignment)
        header = parsed(draft.bytes())
        assert header.version == 2 and header.alignment == alignment


def test_a_file_of_metadata_alone_is_read() -> None:
    header = parsed(Draft(pairs=[("a", BOOL, False)]).bytes())
    assert header.tensors == {} and header.gaps() == []


def changed(**fields: Any) -> Draft:
    draft = sound()
    for name, what in fields.items():
        setattr(draft, name, what)
    return draft


def with_tensor(**fields: Any) -> Draft:
    draft = sound()
    for name, what in fields.items():
        setattr(draft.tensors[1], name, what)
    return draft


def with_pair(*pair: Any) -> Draft:
    draft = sound()
    draft.pairs.append(pair)
    return draft


REFUSED: dict[str, tuple[Draft, str]] = {
    "version 1": (changed(version=1), "version 1"),
    "a later version": (changed(version=4), "upgrade"),
    "big-endian": (changed(version=3 << 24), "big-endian"),
    "very many tensors": (changed(ntensors=2**64 - 1), "number of its tensors"),
    "more tensors than there are": (changed(ntensors=9), "cut short|ends within|does not"),
    "very many metadata": (changed(npairs=2**63), "number of its metadata"),
    "a key twice": (with_pair("general.name", BOOL, True), "twice"),
    "a key that is not UTF-8": (with_pair(b"\xff", BOOL, True), "not UTF-8"),
    "a value that is not UTF-8": (with_pair("x", STRING, b"a\xc3"), "byte 1 of .* is not UTF-8"),
    "a text of an array that is not": (with_pair("x", ARRAY, (STRING, [b"\xed\xa0\x80"])), "UTF-8"),
    "a bool of 2": (with_pair("x", 0, 2), "neither 0 nor 1"),
    "alignment 0": (changed(pairs=[("general.alignment", U32, 0)]), "power of two"),
    "alignment 48": (changed(pairs=[("general.alignment", U32, 48)]), "power of two"),
    "alignment of another type": (changed(pairs=[("general.alignment", 10, 32)]), "of type 10"),
    "tensors that overlap": (with_tensor(offset=0), "overlap"),
    "an offset that is not aligned": (with_tensor(offset=2**20 + 1), "alignment"),
    "an offset outside": (with_tensor(offset=2**20), "cut short"),
    "an offset that overflows": (with_tensor(offset=2**64 - 32), "cut short"),
    "a name twice": (with_tensor(name="blk.0.F32.weight"), "twice"),
    "a name that is not UTF-8": (with_tensor(name=b"\xfe"), "not UTF-8"),
    "five dimensions": (with_tensor(dims=[1] * 5), "5 dimensions"),
    "very many elements": (with_tensor(dims=[2**32, 2**32]), "more than 2"),
    "very many of nothing": (with_tensor(dims=[2**63, 0]), "more than 2"),
    "a type that was never": (with_tensor(kind=4), "type 4"),
    "rows that are no blocks": (with_tensor(kind=12, dims=[100, 1]), "blocks of Q4_K have 256"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_broken_files_are_refused(name: str) -> None:
    draft, words = REFUSED[name]
    data = draft.bytes()
    if name == "a bool of 2":
        place = data.rindex(making.text("x")) + 9
        data = data[:place] + bytes((BOOL,)) + data[place + 1 :]
    with pytest.raises(errors.FileFormatError, match=words):
        parsed(data)


def test_every_cut_is_refused() -> None:
    data = sound().bytes()
    last = max(tensor.end for tensor in parsed(data).tensors.values())
    for length in (*range(0, 1500, 3), *range(1500, last, 17), last - 1):
        with pytest.raises(errors.FileFormatError):
            parsed(data[:length])
    assert parsed(data[:last]).size == last


def test_deep_arrays_are_refused_and_shallow_ones_read() -> None:
    def nested(levels: int) -> bytes:
        deep: Any = (U32, [7])
        data = making.value(ARRAY, deep)
        data = (ARRAY.to_bytes(4, "little") + (1).to_bytes(8, "little")) * (levels - 1) + data
        whole = Draft(pairs=[("deep", 0, 0)]).bytes()
        return whole[:-5] + ARRAY.to_bytes(4, "little") + data

    assert parsed(nested(16)).metadata["deep"] == [[[[[[[[[[[[[[[[7]]]]]]]]]]]]]]]]
    for levels in (17, 1000, 100_000):
        with pytest.raises(errors.FileFormatError, match="deeper than 16"):
            parsed(nested(levels))


@pytest.mark.parametrize("what", ["key", "text", "array of numbers", "array of texts", "name"])
def test_a_length_that_is_no_length_takes_no_memory(what: str) -> None:
    marker = making.text("needle")
    draft = {
        "key": with_pair("needle", BOOL, True),
        "text": with_pair("x", STRING, "needle"),
        "array of texts": with_pair("x", ARRAY, (STRING, ["needle"])),
        "name": with_tensor(name="needle"),
        "array of numbers": with_pair("x", ARRAY, (1, list(b"needle"))),
    }[what]
    data = draft.bytes()
    place = data.index(marker)
    for length in (len(data), 2**40, 2**62, 2**64 - 1):
        hostile = data[:place] + length.to_bytes(8, "little") + data[place + 8 :]
        tracemalloc.start()
        started = time.monotonic()
        with pytest.raises(errors.FileFormatError):
            parsed(hostile)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20 and time.monotonic() - started < 1
        tracemalloc.stop()


def test_a_long_vocabulary_is_read_without_becoming_objects() -> None:
    words = [f"word {number}" for number in range(100_000)]
    data = Draft(pairs=[("tokens", ARRAY, (STRING, words))]).bytes()
    tracemalloc.start()
    header = parsed(data)
    before = tracemalloc.get_traced_memory()[1]
    assert header.metadata["tokens"] == words
    assert tracemalloc.get_traced_memory()[1] > 4 << 20 > 40 * before
    tracemalloc.stop()


def test_the_header_lies_in_wiped_memory() -> None:
    gc.collect()
    before = pyccmem.stats()["plain_in_use"]
    header = parsed(sound().bytes())
    assert pyccmem.stats()["plain_in_use"] >= before + len(header.raw)
    del header
    assert pyccmem.stats()["plain_in_use"] == before


def test_files_that_are_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"", b"GG", b"GGML" + bytes(100), bytes(4096)):
        path.write_bytes(data)
        assert not is_gguf(path)
        with pytest.raises(errors.FileFormatError, match="not a valid GGUF"):
            read_header(path)
    path.write_bytes(b"GGUF")
    assert is_gguf(path)
    with pytest.raises(errors.FileFormatError, match=r"'.*/x': This is not a valid GGUF"):
        read_header(path)
    with pytest.raises(errors.FileReadError):
        read_header(tmp_path)
    with pytest.raises(errors.MissingFileError):
        read_header(tmp_path / "none")
    with pytest.raises(errors.ArgumentTypeError):
        read_header(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(making.MUTATIONS))
def test_mutants_are_refused_or_sound(name: str) -> None:
    found = making.fuzz(150, 3, only=name)
    refused = sum(count for (_, what, _), count in found.items() if what == "refused")
    assert refused > 50
    # The control: a parser that checks nothing falls for many of them.
    assert sum(count for (_, _, what), count in found.items() if what != "believed") > 40


@pytest.mark.full
def test_a_hundred_thousand_mutants() -> None:
    found = making.fuzz(100_000, 4)
    assert sum(found.values()) == 100_000
    refused = sum(count for (_, what, _), count in found.items() if what == "refused")
    outside = sum(count for (_, _, what), count in found.items() if what == "outside")
    assert refused > 60_000 and outside > 5_000


def test_sizes_are_those_of_the_package_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    theirs = {
        int(kind): (kind.name, elements, nbytes)
        for kind, (elements, nbytes) in gguf.GGML_QUANT_SIZES.items()
    }
    ours = {kind.number: (kind.name, kind.elements, kind.nbytes) for kind in TYPES.values()}
    # Of a type for sums of activations, which no file has, the package has an old size: ggml's two
    # numbers before the block are float16 (ggml-common.h, block_q8_1).
    assert theirs.pop(9) == ("Q8_1", 32, 40) and ours.pop(9) == ("Q8_1", 32, 36)
    assert theirs.items() <= ours.items()


def test_files_of_the_package_gguf_are_read_as_it_reads_them(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    path, rng = tmp_path / "model.gguf", np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["a", "ß", "\u2581c"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("deep", [[1, 2], [3]])
    writer.add_float64("wide", 0.1)
    writer.add_key_value("size", 2**40, gguf.GGUFValueType.UINT64)
    for kind, (elements, nbytes) in gguf.GGML_QUANT_SIZES.items():
        if elements > 1 and kind.name != "Q8_1":
            data = rng.integers(0, 256, (2, 3, 2 * nbytes), dtype=np.uint8)
            writer.add_tensor(kind.name, data, raw_dtype=kind)
    for dtype in ("f4", "f2", "f8", "i1", "i2", "i4", "i8"):
        writer.add_tensor(dtype, rng.standard_normal((2, 5)).astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, reader = read_header(path), gguf.GGUFReader(path)
    fields = {key: f for key, f in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for key, found in fields.items():
        if key != "deep":  # which the package makes flat
            assert header.metadata[key] == found.contents(), key
    assert header.metadata["deep"] == [[1, 2], [3]]
    assert len(header.tensors) == len(reader.tensors)
    for theirs in reader.tensors:
        ours = header.tensors[theirs.name]
        assert (ours.start, ours.nbytes) == (theirs.data_offset, theirs.n_bytes)
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))


def test_tensors_of_one_file_may_lie_in_any_order() -> None:
    first, second = Tensor("a", 0, (8,), b"", offset=32), Tensor("b", 0, (8,), b"", offset=0)
    header = parsed(Draft(tensors=[first, second], behind=bytes(64)).bytes())
    assert list(header.tensors) == ["a", "b"]
    assert [tensor.name for tensor in header.in_order()] == ["b", "a"]
