# SPDX-License-Identifier: Apache-2.0
"""Hostile sealed files: whatever an attacker without the key makes of them is refused, with the
tensor's name where one is concerned; the same changes to a plain file are not noticed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fuzz_sealed as fuzzing
import numpy as np
import pytest
import support
from fuzz_sealed import PAGE, Corpus, joined, regions, split

from pyccmem import Key, errors
from pyccmem import safetensors as sealed

REFUSED = (errors.FileFormatError, errors.IntegrityError)


@pytest.fixture
def corpus(tmp_path: Path, key: Key) -> Corpus:
    return fuzzing.make_corpus(tmp_path, key)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def places(data: bytes) -> dict[str, tuple[int, int]]:
    """Where each blob lies in a file, by the blob's name, in order."""
    header, start = split(data)
    found = {n: e["data_offsets"] for n, e in header.items() if n != "__metadata__"}
    return {n: (start + a, start + b) for n, (a, b) in found.items()}


def read_all(path: Path, key: Key) -> dict[str, bytes]:
    return {n: t[...].tobytes() for n, t in sealed.load_file(path, key=key).items()}


# ---- mutated at random ----


@pytest.mark.parametrize("name", list(fuzzing.MUTATIONS))
def test_mutated_files_are_refused(tmp_path: Path, name: str) -> None:
    outcomes = fuzzing.fuzz(400, 7, tmp_path, only=name)[name]
    refused = {what: n for what, n in outcomes.items() if not what.startswith("unchanged")}
    assert sum(outcomes.values()) == 400 and sum(refused.values()) > 200


def test_the_search_finds_what_it_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same search against a reader that forgets a check finds files that get through."""
    import hmac

    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: True)
    with pytest.raises(AssertionError, match="accepted"):
        fuzzing.fuzz(3000, 7, tmp_path)


def test_a_plain_file_takes_the_same_changes(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    source = fuzzing.contents(1)
    data = package.save(source)
    rng, accepted, wrong = random.Random(3), 0, 0
    for number in range(300):
        changed = (fuzzing.flip, fuzzing.burst)[number % 2](rng, None, data)  # type: ignore[arg-type]
        try:
            found = package.load(changed)
        except Exception:
            continue
        accepted += 1
        wrong += any(
            name not in found or found[name].tobytes() != array.tobytes()
            for name, array in source.items()
        )
    assert accepted > 100 and wrong > 100


# ---- every place of a file ----


@pytest.mark.parametrize("which", ["new", "hidden"])
def test_every_part_of_a_file_counts(corpus: Corpus, path: Path, which: str) -> None:
    """A bit of every 64 bytes of a file, and of every byte of the table."""
    data = corpus.files[which]
    table = regions(data)[-1]
    for at in [*range(0, len(data), 61), *range(*table)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(REFUSED):
            read_all(path, corpus.key)
        with pytest.raises(REFUSED):
            sealed.verify_file(path, corpus.key)
    path.write_bytes(data)
    sealed.verify_file(path, corpus.key)
    assert read_all(path, corpus.key) == corpus.tensors[which]


def test_every_length_is_refused(corpus: Corpus, path: Path) -> None:
    data = corpus.files["new"]
    for length in [*range(0, len(data), 97), len(data) - 1, len(data) - 8, len(data) - 16]:
        path.write_bytes(data[:length])
        with pytest.raises(errors.FileFormatError):
            sealed.load_file(path, key=corpus.key)
    for more in (b"\0", bytes(24), bytes(PAGE)):
        path.write_bytes(data + more)
        with pytest.raises(errors.FileFormatError):
            sealed.load_file(path, key=corpus.key)


def test_errors_name_the_tensor(corpus: Corpus, path: Path) -> None:
    data = corpus.files["new"]
    for name, (begin, end) in places(data).items():
        if begin == end or name.startswith("__"):
            continue
        path.write_bytes(data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:])
        weights = sealed.load_file(path, key=corpus.key)
        for other, tensor in weights.items():
            if other != name:
                assert tensor[...].tobytes() == corpus.tensors["new"][other], "the rest is whole"
        with pytest.raises(errors.IntegrityError) as caught:
            weights[name][...]
        assert caught.value.name == name and repr(name) in str(caught.value)
        assert caught.value.page == (end - begin) // PAGE - 1
        with pytest.raises(errors.IntegrityError, match=repr(name)) as caught:
            sealed.verify_file(path, corpus.key)
        assert (caught.value.name, caught.value.page) == (name, (end - begin) // PAGE - 1)


def test_an_error_of_the_table_names_the_tensor(corpus: Corpus, path: Path) -> None:
    data = corpus.files["new"]
    at = places(data)["__pyccmem_table__"][0] + 16
    for name, (begin, end) in list(places(data).items())[:-1]:
        count = (end - begin) // PAGE
        for offset in range(0, 24 * count, 8):
            changed = bytearray(data)
            changed[at + offset] ^= 2
            path.write_bytes(changed)
            with pytest.raises(errors.IntegrityError, match=repr(name)) as caught:
                sealed.load_file(path, key=corpus.key)
            assert caught.value.name == name
            with sealed.safe_open(path, key=corpus.key) as file:
                for other in file.keys():  # noqa: SIM118
                    if other != name:
                        found = file.get_tensor(other)[...].tobytes()
                        assert found == corpus.tensors["new"][other]
            with pytest.raises(errors.IntegrityError, match=repr(name)):
                sealed.verify_file(path, corpus.key)
        at += 24 * count


# ---- what an older version of the file, or another file, can lend ----


def lend(data: bytes, other: bytes, begin: int, end: int) -> bytes:
    return data[:begin] + other[begin:end] + data[end:]


def test_parts_of_an_older_version_are_refused(corpus: Corpus, path: Path) -> None:
    new, old = corpus.files["new"], corpus.files["old"]
    assert len(new) == len(old) and places(new) == places(old)
    table = places(new)["__pyccmem_table__"]
    whole = [(0, table[0] - 0), (places(new)["layer.weight"][0], len(new)), table]
    begin = table[0] + 16
    for name, (first, last) in list(places(new).items())[:-1]:
        count = (last - first) // PAGE
        records = (begin, begin + 24 * count)
        begin = records[1]
        if not count:
            continue
        # The pages alone, the records alone, and both together.
        for changed in (
            lend(new, old, first, last),
            lend(new, old, *records),
            lend(lend(new, old, first, last), old, *records),
        ):
            path.write_bytes(changed)
            with pytest.raises(errors.IntegrityError, match=repr(name)):
                read_all(path, corpus.key)
    for part in whole:
        path.write_bytes(lend(new, old, *part))
        with pytest.raises(REFUSED):
            read_all(path, corpus.key)
    path.write_bytes(lend(new, old, 0, len(new)))
    assert read_all(path, corpus.key) == corpus.tensors["old"], "whole, it is the older file"


def test_headers_before_and_after_a_rewrap_do_not_mix(corpus: Corpus, path: Path) -> None:
    before, after = corpus.files["new"], corpus.files["new, rewrapped"]
    start = places(before)["layer.weight"][0]
    table = places(before)["__pyccmem_table__"][0]
    assert len(before) == len(after)
    for changed in (
        after[:start] + before[start:],
        before[:start] + after[start:],
        lend(before, after, table, table + 16),
    ):
        path.write_bytes(changed)
        with pytest.raises(errors.IntegrityError, match="header"):
            sealed.load_file(path, key=corpus.key)


def test_two_tensors_of_one_form_do_not_change_places(path: Path, key: Key) -> None:
    rng = np.random.default_rng(0)
    source = {name: rng.integers(0, 256, PAGE, dtype=np.uint8) for name in "ab"}
    for seal_names in (False, True):
        sealed.save_file(source, path, key=key, seal_names=seal_names)
        data = path.read_bytes()
        (a, b), table = (list(places(data).values())[-3:-1]), places(data)["__pyccmem_table__"]
        blobs = data[: a[0]] + data[slice(*b)] + data[slice(*a)] + data[b[1] :]
        first = table[1] - 48
        both = blobs[:first] + data[first + 24 :] + data[first : first + 24]
        for changed in (blobs, both, data[:first] + both[first:]):
            path.write_bytes(changed)
            with pytest.raises(errors.IntegrityError):
                read_all(path, key)
        header, start = split(data)
        names = [name for name in header if name not in ("__metadata__", "__pyccmem_table__")][-2:]
        header[names[0]], header[names[1]] = header[names[1]], header[names[0]]
        path.write_bytes(joined(header, data[start:]))
        with pytest.raises(REFUSED):
            read_all(path, key)


# ---- headers ----


def describe(data: bytes, change: Any) -> bytes:
    """A file with another description: change(description, header) edits both in place."""
    header, start = split(data)
    description = json.loads(header["__metadata__"]["pyccmem"])
    change(description, header)
    header["__metadata__"]["pyccmem"] = json.dumps(description)
    return joined(header, data[start:])


def test_a_newer_format_is_told(corpus: Corpus, path: Path) -> None:
    for version in (3, 10**30):
        path.write_bytes(describe(corpus.files["new"], lambda d, h, v=version: d.update(format=v)))
        for work in (sealed.load_file, sealed.inspect_file, sealed.verify_file):
            with pytest.raises(errors.FileFormatError, match="newer pyccmem"):
                work(path, key=corpus.key)  # type: ignore[operator]


HEADERS: dict[str, Any] = {
    "format 0": lambda d, h: d.update(format=0),
    "format true": lambda d, h: d.update(format=True),
    "no file_id": lambda d, h: d.pop("file_id"),
    "one field more": lambda d, h: d.update(more=1),
    "short file_id": lambda d, h: d.update(file_id=d["file_id"][:-2]),
    "file_id in capitals": lambda d, h: d.update(file_id="AB" * 16),
    "generation 0": lambda d, h: d.update(generation=0),
    "generation 2^53": lambda d, h: d.update(generation=2**53),
    "generation 1.0": lambda d, h: d.update(generation=1.0),
    "XTS": lambda d, h: d.update(cipher="aes-256-xts"),
    "unknown cipher": lambda d, h: d.update(cipher="rot13"),
    "page_size 2048": lambda d, h: d.update(page_size=2048),
    "page_size 6000": lambda d, h: d.update(page_size=6000),
    "page_size 8192": lambda d, h: d.update(page_size=8192),
    "metadata not of texts": lambda d, h: d.update(metadata={"a": 1}),
    "lone surrogate": lambda d, h: d.update(metadata={"a": "\ud800"}),
    "tensors a list": lambda d, h: d.update(tensors=[]),
    "tensors gone": lambda d, h: d.update(tensors={}),
    "tensor gone": lambda d, h: d["tensors"].pop("step"),
    "tensor more": lambda d, h: d["tensors"].update(more=d["tensors"]["step"]),
    "tensor renamed": lambda d, h: d["tensors"].update(more=d["tensors"].pop("step")),
    "two blobs in one": lambda d, h: d["tensors"]["step"].update(blob="layer.bias"),
    "dtype unknown": lambda d, h: d["tensors"]["step"].update(dtype="F128"),
    "dtype larger": lambda d, h: d["tensors"]["layer.bias"].update(dtype="F64"),
    "dtype of the size": lambda d, h: d["tensors"]["layer.bias"].update(dtype="I32"),
    "shape of the size": lambda d, h: d["tensors"]["layer.bias"].update(shape=[6, 6]),
    "shape too large": lambda d, h: d["tensors"]["layer.bias"].update(shape=[2**62, 2**62]),
    "shape below 0": lambda d, h: d["tensors"]["layer.bias"].update(shape=[-36]),
    "shape of texts": lambda d, h: d["tensors"]["layer.bias"].update(shape=["36"]),
    "nbytes less": lambda d, h: d["tensors"]["bytes"].update(nbytes=PAGE, shape=[PAGE]),
    "nbytes within": lambda d, h: d["tensors"]["bytes"].update(nbytes=5000, shape=[5000]),
    "store_id twice": lambda d, h: d["tensors"]["step"].update(
        store_id=d["tensors"]["bytes"]["store_id"]
    ),
    "table_mac short": lambda d, h: d["tensors"]["step"].update(table_mac="00"),
    "key a text": lambda d, h: d.update(key="key"),
    "wrapped empty": lambda d, h: d["key"].update(wrapped=""),
    "wrapped short": lambda d, h: d["key"].update(wrapped="00" * 39),
    "wrapped changed": lambda d, h: d["key"].update(wrapped="00" * 40),
    "parameters a list": lambda d, h: d["key"].update(parameters=[]),
    "metadata of two": lambda d, h: h["__metadata__"].update(format="pt"),
    "dtype of a blob": lambda d, h: h["bytes"].update(dtype="I8"),
    "shape of a blob": lambda d, h: h["layer.bias"].update(shape=[2, PAGE // 2]),
    "no table": lambda d, h: h.update(__pyccmem_tablet__=h.pop("__pyccmem_table__")),
    "table not last": lambda d, h: h.update(
        __pyccmem_table__=h["bytes"], bytes=h["__pyccmem_table__"]
    ),
}


@pytest.mark.parametrize("what", list(HEADERS))
def test_edited_headers(corpus: Corpus, path: Path, what: str) -> None:
    path.write_bytes(describe(corpus.files["new"], HEADERS[what]))
    with pytest.raises(REFUSED):
        sealed.load_file(path, key=corpus.key)


def test_a_header_that_is_only_written_anew(corpus: Corpus, path: Path) -> None:
    """Not a value is changed, but the tag is over the bytes."""
    path.write_bytes(describe(corpus.files["new"], lambda d, h: None))
    sealed.inspect_file(path)
    with pytest.raises(errors.IntegrityError, match="header"):
        sealed.load_file(path, key=corpus.key)


def test_a_header_for_another_key(corpus: Corpus, path: Path) -> None:
    changed = describe(corpus.files["new"], lambda d, h: d["key"].update(key_id="no such \x1b[2J"))
    path.write_bytes(changed)
    with pytest.raises(errors.InvalidKeyError, match="no such") as caught:
        sealed.load_file(path, key=corpus.key)
    assert "\x1b" not in str(caught.value), "nothing in it reaches the terminal as it is"
    for provider in ("scrypt", "argon2id", "aws", ""):
        path.write_bytes(
            describe(corpus.files["new"], lambda d, h, p=provider: d["key"].update(provider=p))
        )
        with pytest.raises(errors.InvalidKeyError):
            sealed.load_file(path, key=corpus.key)


@pytest.mark.parametrize(
    "inner",
    [
        *("", "null", "[]", "{", '"', "\ud800"),
        '{"format":1}',
        '{"format":1,"format":1}',
        '{"format":NaN}',
        '{"format":' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
)
def test_descriptions_that_are_none(corpus: Corpus, path: Path, inner: str) -> None:
    header, start = split(corpus.files["new"])
    header["__metadata__"]["pyccmem"] = inner
    path.write_bytes(joined(header, corpus.files["new"][start:]))
    for work in (sealed.load_file, sealed.inspect_file):
        with pytest.raises(errors.FileFormatError):
            work(path, key=corpus.key)  # type: ignore[operator]


@support.not_sanitized
def test_sizes_are_bounded_before_anything_is_allocated(path: Path, key: Key) -> None:
    """A sparse file of terabytes whose header fits it: refused for its tag, in little memory."""
    sealed.save_file({"t": np.zeros(PAGE, np.uint8)}, path, key=key)
    pages = 1 << 30  # 4 TiB of pages, 24 GiB of table

    def enlarge(description: Any, header: Any) -> None:
        nbytes = pages * PAGE
        description["tensors"]["t"].update(shape=[nbytes], nbytes=nbytes)
        header["t"].update(shape=[nbytes, 1], data_offsets=[0, nbytes])
        table = 16 + 24 * pages
        header["__pyccmem_table__"].update(shape=[table], data_offsets=[nbytes, nbytes + table])

    header, start = split(describe(path.read_bytes(), enlarge))
    end = header["__pyccmem_table__"]["data_offsets"][1]
    with open(path, "wb") as file:
        file.write(joined(header, b""))
        try:
            file.truncate(start + end)
        except OSError:
            pytest.skip("this filesystem has no files of terabytes")
    script = """
import resource, sys
import pyccmem
from pyccmem import errors, safetensors
key = pyccmem.Key.from_bytes(bytes(range(32)))
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for work in (safetensors.load_file, safetensors.verify_file):
    try:
        work(sys.argv[1], key=key)
    except errors.IntegrityError as error:
        assert "header" in str(error)
        print("refused")
"""
    assert support.check_python(script, str(path)).split() == ["refused"] * 2


def test_the_program_counts_what_it_did() -> None:
    done = subprocess.run(
        [sys.executable, fuzzing.__file__, "200", "5"],
        env=support.child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "all: 200 in" in done.stdout and "none that was changed was accepted" in done.stdout
    counted: Counter = Counter()
    for line in done.stdout.split("all:")[1].splitlines()[1:-1]:
        number, _, what = line.strip().partition("  ")
        counted[what] = int(number)
    assert sum(counted.values()) == 200
