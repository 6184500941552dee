# SPDX-License-Identifier: Apache-2.0
"""A key unwrapped for one file opens no other: contexts of sealed files, of format 2."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import earlier
import gguf_files
import numpy as np
import pytest
from earlier import FOLDER

import pyccmem
from pyccmem import Key, errors, gguf
from pyccmem import safetensors as sealed
from pyccmem.key_services import WrappedKey, envelope
from pyccmem.safetensors import Passphrase

TENSORS = {"t": np.arange(10.0)}
PAGE = 4096


class Bound:
    """A service that binds to the context, as those with associated data do."""

    name = "bound"
    kek = bytes(range(32))

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        return WrappedKey("k", envelope.seal(self.kek, key, context))

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Key:
        return envelope.open(self.kek, wrapped.blob, context)


class Careless(Bound):
    """A service that takes a context and forgets it: what the control is made of."""

    name = "careless"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        return super().wrap_key(key, {})

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Key:
        return super().unwrap_key(wrapped, {})


class Before:
    """A service of before contexts, whose methods take none."""

    name = "before"

    def wrap_key(self, key: memoryview) -> WrappedKey:
        return WrappedKey("k", bytes(byte ^ 7 for byte in key))

    def unwrap_key(self, wrapped: WrappedKey) -> bytearray:
        return bytearray(byte ^ 7 for byte in wrapped.blob)


class After(Before):
    """The same service, which has learned of contexts since."""

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:  # type: ignore[override]
        return WrappedKey("new", envelope.seal(Bound.kek, key, context))

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Any:  # type: ignore[override]
        if wrapped.key_id == "k":
            assert not context
            return super().unwrap_key(wrapped)
        return envelope.open(Bound.kek, wrapped.blob, context)


KINDS: dict[str, Callable[[], Any]] = {
    "key": lambda: Key.from_bytes(earlier.KEY),
    "passphrase": lambda: Passphrase("phrase", n=16),
    "bound": Bound,
    "before": Before,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def described(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"]["pyccmem"])
    return found


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the description in a file's header, as an attacker can."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    document = json.loads(header["__metadata__"]["pyccmem"])
    change(document)
    header["__metadata__"]["pyccmem"] = json.dumps(document)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


def opens(path: Path, key: Any, **named: Any) -> bool:
    found = sealed.load_file(path, key=key, **named)
    return bool((found["t"][...] == TENSORS["t"]).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_of_one_file_opens_no_other(tmp_path: Path, kind: str) -> None:
    """The key's entry of one file is put into another, as it is, and made to look the part."""
    key = KINDS[kind]()
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        sealed.save_file(TENSORS, path, key=key, context={"tenant": "a"})
    entry = described(one)["key"]
    rewrite(other, lambda document: document.update(key=entry))
    with pytest.raises(errors.ContextError, match="another context") as caught:
        sealed.load_file(other, key=key)
    for ids, where in ((caught.value.found, one), (caught.value.wanted, other)):
        file_id = described(where)["file_id"]
        assert ids is not None and ids["pyccmem.file_id"] == file_id
        assert file_id in str(caught.value)
    entry["context"]["pyccmem.file_id"] = described(other)["file_id"]
    rewrite(other, lambda document: document.update(key=entry))
    with pytest.raises(errors.ContextError, match="does not open for this context"):
        sealed.load_file(other, key=key)
    assert opens(one, key)


def test_the_control_a_careless_service(tmp_path: Path) -> None:
    """Without a binding the service hands out the key of the other file: only the header's tag
    refuses it then."""
    key = Careless()
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        sealed.save_file(TENSORS, path, key=key)
    entry = described(one)["key"]
    entry["context"]["pyccmem.file_id"] = described(other)["file_id"]
    rewrite(other, lambda document: document.update(key=entry))
    with pytest.raises(errors.IntegrityError, match="header") as caught:
        sealed.load_file(other, key=key)
    assert not isinstance(caught.value, errors.ContextError)


@pytest.mark.parametrize("kind", KINDS)
def test_one_character_of_the_context(path: Path, kind: str) -> None:
    key = KINDS[kind]()
    context = {"tenant": "alice", "model": "minilm"}
    sealed.save_file(TENSORS, path, key=key, context=context)
    assert opens(path, key) and opens(path, key, context=context)
    assert opens(path, key, context={"tenant": "alice"})
    for wrong in ({"tenant": "alicf"}, {"tenanu": "alice"}, {"tenant": "alice", "more": ""}):
        with pytest.raises(errors.ContextError) as caught:
            sealed.load_file(path, key=key, context=wrong)
        assert caught.value.found is not None and caught.value.wanted is not None
        assert context.items() <= caught.value.found.items()
        assert wrong.items() <= caught.value.wanted.items()
    with pytest.raises(errors.ContextError, match=r"tenant=alice, and tenant=alicf is needed"):
        sealed.load_file(path, key=key, context={"tenant": "alicf"})
    whole = path.read_bytes()
    for change in (
        lambda document: document["key"]["context"].update(tenant="alicf"),
        lambda document: document["key"]["context"].pop("model"),
        lambda document: document["key"]["context"].update(more=""),
    ):
        path.write_bytes(whole)
        rewrite(path, change)
        with pytest.raises(errors.ContextError, match=r"tenant=alic[ef]"):
            sealed.load_file(path, key=key)


@pytest.mark.parametrize("kind", KINDS)
def test_no_way_back_to_format_1(path: Path, kind: str) -> None:
    """A header of format 2 that says it is of format 1 opens with no key."""
    key = KINDS[kind]()
    sealed.save_file(TENSORS, path, key=key)

    def strip(document: dict[str, Any]) -> None:
        document["format"] = 1
        del document["key"]["context"], document["key"]["bound"]

    rewrite(path, strip)
    with pytest.raises((errors.IntegrityError, errors.InvalidKeyError)):
        sealed.load_file(path, key=key)


@pytest.mark.parametrize("kind", KINDS)
def test_rewrapping_keeps_the_context_or_changes_it(path: Path, kind: str) -> None:
    key = KINDS[kind]()
    context = {"tenant": "a"}
    sealed.save_file(TENSORS, path, key=key, context=context)
    with Key.generate() as new:
        with pytest.raises(errors.ContextError):
            sealed.rewrap_file(path, key, new, context={"tenant": "b"})
        sealed.rewrap_file(path, key, new, context=context)
        assert opens(path, new, context=context)
        sealed.rewrap_file(path, new, key, new_context={"tenant": "b"})
    assert opens(path, key, context={"tenant": "b"})
    sealed.rewrap_file(path, key, key, new_context={})
    info = sealed.inspect_file(path, key)
    assert info.format == 2 and info.generation == 4
    assert set(info.context) == {"pyccmem.file_id", "pyccmem.format", "pyccmem.purpose"}


@pytest.mark.parametrize("name", earlier.OPENS)
def test_files_of_format_1(tmp_path: Path, name: str) -> None:
    """They have no context, and get one when they are rewrapped."""
    if name == "argon2id.safetensors":
        pytest.importorskip("argon2", reason="needs the extra pyccmem[argon2]")
    key = earlier.OPENS[name]()
    path = tmp_path / name
    path.write_bytes((FOLDER / name).read_bytes())
    info = sealed.inspect_file(path, key)
    assert (info.format, info.context) == (1, {})
    with pytest.raises(errors.ContextError, match="format 1"):
        sealed.load_file(path, key=key, context={"a": "b"})
    sealed.rewrap_file(path, key, key, new_context={"a": "b"})
    later = sealed.inspect_file(path, key, context={"a": "b"})
    assert (later.format, later.file_id) == (2, info.file_id)
    assert (sealed.load_file(path, key=key)["counter"][...] == -(2**40)).all()


def test_other_contents_of_format_1() -> None:
    with earlier.key() as key:
        with gguf.open_sealed(FOLDER / "model.gguf.sealed", key) as file:
            assert file.tensors
        with pyccmem.KVCache.load(FOLDER / "cache.safetensors", key) as cache:
            for which, wanted in zip("kv", earlier.cached(), strict=True):
                assert (cache.read(0, which, sequence=0) == wanted).all()


def test_a_service_that_learns_of_contexts(tmp_path: Path) -> None:
    """It opens what it wrapped before, of either format, and binds what it wraps from then on."""
    path = tmp_path / "file"
    sealed.save_file(TENSORS, path, key=Before())
    assert described(path)["key"]["bound"]
    assert opens(path, After())
    sealed.rewrap_file(path, After(), After())
    assert not described(path)["key"]["bound"] and opens(path, After())
    first = tmp_path / "first"
    first.write_bytes((FOLDER / "service.safetensors").read_bytes())

    class Service(earlier.Service):
        def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:  # type: ignore[override]
            raise AssertionError

        def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray:  # type: ignore[override]
            assert context == {}
            return super().unwrap_key(wrapped)

    sealed.verify_file(first, Service())


def test_half_a_service(path: Path) -> None:
    class Half(Before):
        def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(errors.ArgumentTypeError, match="only one of"):
        sealed.save_file(TENSORS, path, key=Half())


def test_gguf_files(tmp_path: Path) -> None:
    plain, there, again = (tmp_path / name for name in ("a.gguf", "b", "c.gguf"))
    plain.write_bytes(gguf_files.sound().bytes())
    with Key.generate() as key:
        gguf.seal(plain, there, key, context={"model": "m"})
        with gguf.open_sealed(there, key, context={"model": "m"}):
            pass
        for function in (gguf.open_sealed, gguf.inspect):
            with pytest.raises(errors.ContextError):
                function(there, key, context={"model": "n"})
        with pytest.raises(errors.ContextError):
            gguf.unseal(there, again, key, context={"model": "n"})
        gguf.unseal(there, again, key, context={"model": "m"})
    assert again.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("context", "error"),
    [
        ("text", errors.ArgumentTypeError),
        ({"a": 1}, errors.ArgumentTypeError),
        ({"pyccmem.file_id": "x"}, errors.ArgumentError),
        ({"": "x"}, errors.ArgumentError),
        ({str(n): "" for n in range(17)}, errors.ArgumentError),
    ],
)
def test_what_is_no_context(path: Path, key: Key, context: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        sealed.save_file(TENSORS, path, key=key, context=context)
    assert not path.exists()
    sealed.save_file(TENSORS, path, key=key)
    with pytest.raises(error):
        sealed.load_file(path, key=key, context=context)
    with pytest.raises(error):
        sealed.rewrap_file(path, key, key, new_context=context)
    assert opens(path, key)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key.pop("context"),
        lambda key: key.pop("bound"),
        lambda key: key.update(context=None),
        lambda key: key.update(context={"a": 1}),
        lambda key: key.update(context={"": ""}),
        lambda key: key.update(context={str(n): "" for n in range(33)}),
        lambda key: key.update(context={"a": "b" * 2000}),
        lambda key: key.update(bound="zz"),
        lambda key: key.update(more=""),
    ],
)
def test_headers_that_cannot_be(path: Path, key: Key, change: Any) -> None:
    sealed.save_file(TENSORS, path, key=key)
    rewrite(path, lambda document: change(document["key"]))
    with pytest.raises(errors.FileFormatError):
        sealed.load_file(path, key=key)


def test_a_plain_file_has_no_context(path: Path, key: Key) -> None:
    sealed.save_file(TENSORS, path, key=key)
    plain = path.with_name("plain")
    sealed.decrypt_file(path, plain, key)
    with pytest.raises(errors.IntegrityError, match="plain"):
        sealed.load_file(plain, key=key, context={"a": "b"})


def test_bytes_and_open_files(path: Path, key: Key) -> None:
    data = sealed.save(TENSORS, key=key, context={"a": "b"})
    assert sealed.load(data, key=key, context={"a": "b"})
    with pytest.raises(errors.ContextError):
        sealed.deserialize(data, key=key, context={"a": "c"})
    path.write_bytes(data)
    with open(path, "rb") as file:
        with pytest.raises(errors.ContextError):
            sealed.safe_open_handle(file, key=key, context={"a": "c"})
        with sealed.safe_open_handle(file, key=key, context={"a": "b"}) as opened:
            assert opened.context["a"] == "b"  # type: ignore[attr-defined]
