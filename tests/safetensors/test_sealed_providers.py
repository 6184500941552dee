# SPDX-License-Identifier: Apache-2.0
"""What opens a sealed file: passphrases, key services, and their mistakes."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.key_services import envelope
from pyccmem.key_services.context import digest
from pyccmem.safetensors import KeyProvider, Passphrase, WrappedKey, providers

TENSORS = {"t": np.arange(10.0)}
#: Cheap parameters; what they cost is not what these tests are about.
CHEAP: dict[str, dict[str, int]] = {
    "scrypt": {"n": 16, "r": 1, "p": 1},
    "argon2id": {"t": 1, "m": 64, "p": 1},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture(params=["scrypt", "argon2id"])
def kdf(request: pytest.FixtureRequest) -> str:
    if request.param == "argon2id":
        pytest.importorskip("argon2", reason="argon2id needs the extra argon2")
    return str(request.param)


def opens(path: Path, key: Any) -> bool:
    return bool((sealed.load_file(path, key=key)["t"][...] == TENSORS["t"]).all())


def parameters(path: Path) -> dict[str, str]:
    return sealed.inspect_file(path).parameters


# ---- passphrases ----


def test_a_passphrase_opens_what_it_sealed(path: Path, kdf: str) -> None:
    sealed.save_file(TENSORS, path, key=Passphrase("correct hörse", kdf=kdf, **CHEAP[kdf]))
    info = sealed.inspect_file(path)
    assert info.provider == kdf and len(bytes.fromhex(info.parameters["salt"])) == 16
    assert {n: int(v) for n, v in info.parameters.items() if n != "salt"} == CHEAP[kdf]
    assert opens(path, Passphrase("correct hörse"))
    for wrong in ("correct horse", "correct hörse ", "x"):
        with pytest.raises(errors.InvalidKeyError, match="passphrase does not open") as caught:
            sealed.load_file(path, key=Passphrase(wrong))
        assert "correct" not in str(caught.value)
    with pytest.raises(errors.InvalidKeyError, match="Passphrase"), Key.generate() as key:
        sealed.load_file(path, key=key)


def test_derivations_are_the_published_ones(path: Path, kdf: str) -> None:
    """The key of the file by hashlib's scrypt and by argon2's own function."""
    import hashlib

    sealed.save_file(TENSORS, path, key=Passphrase("phrase", kdf=kdf, **CHEAP[kdf]))
    found = parameters(path)
    salt, numbers = bytes.fromhex(found["salt"]), CHEAP[kdf]
    if kdf == "scrypt":
        derived = hashlib.scrypt(b"phrase", salt=salt, dklen=32, **numbers)
    else:
        from argon2.low_level import Type, hash_secret_raw

        derived = hash_secret_raw(
            b"phrase", salt, numbers["t"], numbers["m"], numbers["p"], 32, Type.ID
        )
    with Key.from_bytes(derived) as key:
        assert key.id == sealed.inspect_file(path).key_id
        description = json.loads(path.read_bytes()[8:4096].split(b"\n")[0].strip(b" \0") or b"{}")
        text = description["__metadata__"]["pyccmem"]
        entry = json.loads(text)["key"]
        wrapped = bytes.fromhex(entry["wrapped"])
        with envelope.open(key, wrapped, entry["context"]) as data_key:
            assert data_key.id != key.id


def test_salts_are_new_for_each_object_and_the_same_within_one(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    one, other = Passphrase("phrase", n=16), Passphrase("phrase", n=16)
    for path, phrase in zip(paths, (one, one, other), strict=True):
        sealed.save_file(TENSORS, path, key=phrase)
    salts = [parameters(path)["salt"] for path in paths]
    assert salts[0] == salts[1] != salts[2]
    assert len({sealed.inspect_file(path).file_id for path in paths}) == 3
    assert all(opens(path, Passphrase("phrase")) for path in paths)


def test_a_derived_key_is_kept_until_close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = Key.from_passphrase.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Key], *words: Any, **named: Any) -> Key:
        calls.append(named)
        return real(cls, *words, **named)  # type: ignore[no-any-return]

    monkeypatch.setattr(Key, "from_passphrase", classmethod(counted))
    phrase = Passphrase("phrase", n=16)
    for _ in range(3):
        sealed.save_file(TENSORS, path, key=phrase)
        assert opens(path, phrase)
    assert len(calls) == 1
    phrase.close()
    assert opens(path, phrase) and len(calls) == 2


def test_a_passphrase_after_a_fork_derives_anew(path: Path) -> None:
    phrase = Passphrase("phrase", n=16)
    sealed.save_file(TENSORS, path, key=phrase)

    def child() -> None:
        assert opens(path, phrase)

    support.in_forked_child(child)


def test_passphrases_stay_here() -> None:
    phrase = Passphrase("secret words")
    assert "secret" not in repr(phrase)
    for work in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(errors.NotPicklableError):
            work(phrase)


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ("", {}, errors.InvalidKeyError),
        (b"bytes", {}, errors.ArgumentTypeError),
        ("x", {"kdf": "md5"}, errors.ArgumentError),
        ("x", {"n": 1000}, errors.ArgumentError),
        ("x", {"n": 1}, errors.ArgumentError),
        ("x", {"n": 2**25}, errors.ArgumentError),
        ("x", {"n": 2**20, "r": 64}, errors.ArgumentError),
        ("x", {"r": 0}, errors.ArgumentError),
        ("x", {"n": 16.0}, errors.ArgumentTypeError),
        ("x", {"t": 3}, errors.ArgumentTypeError),
        ("x", {"kdf": "argon2id", "n": 16}, errors.ArgumentTypeError),
        ("x", {"kdf": "argon2id", "m": 2**22}, errors.ArgumentError),
        ("x", {"kdf": "argon2id", "m": 31, "p": 4}, errors.ArgumentError),
    ],
)
def test_passphrases_that_cannot_be(text: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Passphrase(text, **options)


def test_a_lone_surrogate(path: Path, kdf: str) -> None:
    with pytest.raises(errors.InvalidKeyError, match="surrogate") as caught:
        sealed.save_file(TENSORS, path, key=Passphrase("secret\ud800", kdf=kdf, **CHEAP[kdf]))
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "secret" not in repr(chain)
        chain = chain.__context__


@pytest.mark.parametrize(
    "change",
    [
        {"n": "9999999999"},
        {"n": "17"},
        {"n": "016"},
        {"n": "-16"},
        {"n": "1e3"},
        {"n": "\u0661\u0666"},
        {"r": "1000"},
        {"p": "0"},
        {"n": "1048576", "r": "32"},
        {"salt": ""},
        {"salt": "00" * 15},
        {"salt": "0" * 33},
        {"salt": "zz" * 16},
        {"more": "1"},
        {"p": None},
    ],
)
def test_parameters_of_a_hostile_file_cost_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None]
) -> None:
    sealed.save_file(TENSORS, path, key=Passphrase("phrase", **CHEAP["scrypt"]))
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    description = json.loads(header["__metadata__"]["pyccmem"])
    found = description["key"]["parameters"] | change
    description["key"]["parameters"] = {n: v for n, v in found.items() if v is not None}
    header["__metadata__"]["pyccmem"] = json.dumps(description)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])

    def never(*_: Any, **__: Any) -> Key:
        raise AssertionError("something was derived")

    monkeypatch.setattr(Key, "from_passphrase", never)
    with pytest.raises(errors.FileFormatError, match="scrypt cannot use"):
        sealed.load_file(path, key=Passphrase("phrase"))


def test_argon2_without_its_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "argon2", None)
    with pytest.raises(errors.MissingPackageError, match=r"pyccmem\[argon2\]"):
        sealed.save_file(TENSORS, path, key=Passphrase("x", kdf="argon2id"))
    assert not os.listdir(path.parent)


# ---- key services ----


class Service:
    """A key service that keeps its key in the process, and what it was handed."""

    name = "service"

    def _masked(self, key: Any, context: Mapping[str, str]) -> bytearray:
        mask = digest(context)
        return bytearray(a ^ b ^ c for a, b, c in zip(key, self.pad, mask, strict=True))

    def __init__(self) -> None:
        self.pad = bytes(range(100, 132))
        self.handed: list[memoryview] = []
        self.given: list[bytearray] = []

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        assert len(key) == 32
        self.seen = bytes(key)
        self.handed.append(key)
        return WrappedKey("key-7", bytes(self._masked(key, context)), {"r": "é"})

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray:
        assert (wrapped.key_id, wrapped.parameters) == ("key-7", {"r": "é"})
        found = self._masked(wrapped.blob, context)
        self.given.append(found)
        return found


def test_a_service_opens_what_it_sealed(path: Path) -> None:
    service = Service()
    assert isinstance(service, KeyProvider)
    sealed.save_file(TENSORS, path, key=service)
    info = sealed.inspect_file(path)
    assert (info.provider, info.key_id, info.parameters) == ("service", "key-7", {"r": "é"})
    assert opens(path, service)
    assert service.given and all(not any(key) for key in service.given), "wiped after use"
    with pytest.raises(ValueError, match="released"):
        bytes(service.handed[0])
    with Key.from_bytes(service.seen) as data_key, sealed.safe_open(path, key=service) as file:
        assert data_key.id == file._data_key.id, "it was the key"
    with pytest.raises(errors.InvalidKeyError, match="'service'"), Key.generate() as key:
        sealed.load_file(path, key=key)
    with Key.generate() as key:
        sealed.rewrap_file(path, service, key)
        assert opens(path, key)
        with pytest.raises(errors.InvalidKeyError, match="'service'"):
            sealed.load_file(path, key=service)
        sealed.rewrap_file(path, key, service)
        assert opens(path, service)


def test_another_service(path: Path) -> None:
    other = Service()
    other.name = "other"
    sealed.save_file(TENSORS, path, key=Service())
    with pytest.raises(errors.InvalidKeyError, match="'service'"):
        sealed.load_file(path, key=other)
    other.name, other.pad = "service", bytes(32)
    with pytest.raises(errors.IntegrityError, match="header"):
        sealed.load_file(path, key=other)


def test_what_a_service_raises_arrives(path: Path) -> None:
    service = Service()
    sealed.save_file(TENSORS, path, key=service)
    before = path.read_bytes()

    class Away(Service):
        def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
            raise ConnectionError("away")

        def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> bytearray:
            raise ConnectionError("away")

    with pytest.raises(ConnectionError):
        sealed.load_file(path, key=Away())
    with pytest.raises(ConnectionError):
        sealed.save_file(TENSORS, path, key=Away())
    with pytest.raises(ConnectionError):
        sealed.rewrap_file(path, service, Away())
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "given",
    [None, b"x" * 32, bytearray(31), bytearray(33), bytearray(), "x" * 32],
)
def test_a_service_that_gives_no_key(path: Path, given: Any) -> None:
    service = Service()
    sealed.save_file(TENSORS, path, key=service)
    service.unwrap_key = lambda wrapped, context: given  # type: ignore[method-assign]
    with pytest.raises(errors.ArgumentTypeError, match="bytearray of 32"):
        sealed.load_file(path, key=service)
    assert not isinstance(given, bytearray) or not any(given)


@pytest.mark.parametrize(
    "given",
    [
        None,
        b"blob",
        WrappedKey("id", "text"),  # type: ignore[arg-type]
        WrappedKey(7, b"x"),  # type: ignore[arg-type]
        WrappedKey("id", b"x", {"a": 1}),  # type: ignore[dict-item]
        WrappedKey("id", b""),
        WrappedKey("id", bytes(70_000)),
        WrappedKey("i" * 5000, b"x"),
        WrappedKey("\ud800", b"x"),
        WrappedKey("id", b"x", {str(n): "" for n in range(65)}),
        WrappedKey("id", b"x", {"a": "b" * 5000}),
    ],
)
def test_a_service_that_wraps_nothing_a_file_can_keep(path: Path, given: Any) -> None:
    service = Service()
    service.wrap_key = lambda key, context: given  # type: ignore[method-assign]
    with pytest.raises((errors.ArgumentTypeError, errors.ArgumentError)):
        sealed.save_file(TENSORS, path, key=service)
    assert not os.listdir(path.parent)


@pytest.mark.parametrize("name", ["", "key", "scrypt", "argon2id", "\ud800", "x" * 5000, 7, None])
def test_names_a_service_cannot_have(path: Path, name: Any) -> None:
    service = Service()
    service.name = name
    with pytest.raises((errors.ArgumentTypeError, errors.ArgumentError)):
        sealed.save_file(TENSORS, path, key=service)


# ---- entry points ----


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory on the path for modules and their entry points."""
    directory = tmp_path / "installed"
    package = directory / "someones_keys-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-keys\nVersion: 1.0\n")
    (directory / "someones_keys.py").write_text(
        "from test_sealed_providers import Service\n"
        "instance = Service()\n"
        "def made():\n    return Service()\n"
        "nothing = 7\n"
    )
    (package / "entry_points.txt").write_text(
        "[pyccmem.key_providers]\n"
        "instance = someones_keys:instance\n"
        "class = someones_keys:Service\n"
        "made = someones_keys:made\n"
        "missing = someones_keys:missing\n"
    )
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.syspath_prepend(str(directory))
    importlib.invalidate_caches()
    return directory


def test_services_of_installed_packages(installed: Path, path: Path) -> None:
    for name in ("instance", "class", "made"):
        service = sealed.provider_named(name)
        sealed.save_file(TENSORS, path, key=service)
        assert opens(path, sealed.provider_named(name))
    with pytest.raises(errors.ArgumentError, match="instance"):
        sealed.provider_named("none")


def test_two_services_of_one_name(installed: Path) -> None:
    other = installed / "more_keys-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: more-keys\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(
        f"[{providers.ENTRY_POINTS}]\ninstance = someones_keys:instance\n"
    )
    importlib.invalidate_caches()
    with pytest.raises(errors.ArgumentError, match="2 packages"):
        sealed.provider_named("instance")
