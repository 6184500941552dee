# SPDX-License-Identifier: Apache-2.0
"""`pyccmem keys`, and --key and --context of the commands for sealed files."""

from __future__ import annotations

import importlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.cli import main
from pyccmem.key_services import WrappedKey, envelope, schemes

KEK = bytes(range(32))


class Bound:
    """A service whose keys are bound to their contexts, and that can be closed."""

    name = "bound"
    closed = 0

    @classmethod
    def from_uri(cls, uri: str) -> Any:
        return cls()

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        return WrappedKey("kek-1", envelope.seal(KEK, key, context))

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Any:
        return envelope.open(KEK, wrapped.blob, context)

    def close(self) -> None:
        type(self).closed += 1


class Careless(Bound):
    """The control of `keys test`: it forgets the context."""

    name = "careless"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        return super().wrap_key(key, {})

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Any:
        return super().unwrap_key(wrapped, {})


class Forgetful(Bound):
    """One that gives another key back."""

    name = "forgetful"

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Any:
        return Key.generate()


class Away(Bound):
    name = "away"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        raise errors.KeyUnavailableError("The service is away; start it.")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a plain file, a key file, and a package that offers the services above."""
    package = pytest.importorskip("safetensors.numpy")
    monkeypatch.chdir(tmp_path)
    package.save_file({"bias": np.ones(9)}, tmp_path / "plain")
    assert main(["keygen", "key"]) == 0
    directory = tmp_path / "installed"
    info = directory / "services_of_a_test-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: services-of-a-test\nVersion: 1\n")
    names = ("Bound", "Careless", "Forgetful", "Away")
    (directory / "services_of_a_test.py").write_text("from test_keys_command import *\n")
    (info / "entry_points.txt").write_text(
        "[pyccmem.key_providers]\n"
        + "".join(f"{name.lower()} = services_of_a_test:{name}\n" for name in names)
    )
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.syspath_prepend(str(directory))
    importlib.invalidate_caches()
    return tmp_path


def test_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["file", "pyccmem"] for line in lines)
    assert any(line.split() == ["bound", "services-of-a-test"] for line in lines)
    assert main(["keys", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["scheme"] for entry in found] == schemes()


@pytest.mark.parametrize("uri", ["file:key", "bound:x"])
def test_test(home: Path, capsys: pytest.CaptureFixture[str], uri: str) -> None:
    capsys.readouterr()
    assert main(["keys", "test", uri, "--context", "a=b"]) == 0
    assert "another context  refused" in capsys.readouterr().out
    assert main(["keys", "test", uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] and found["bound"] and set(found["seconds"]) == {"wrap", "unwrap"}
    assert main(["keys", "test", uri, "--json", "--count", "20"]) == 0
    seconds = json.loads(capsys.readouterr().out)["seconds"]
    assert 0 < seconds["unwrap"] <= seconds["slowest unwrap"]
    for wrong in ("0", "x", "-1", "9" * 30):
        with pytest.raises(SystemExit):
            main(["keys", "test", uri, "--count", wrong])
    if uri == "file:key":
        with Key.from_file("key") as key:
            assert (found["provider"], found["key_id"]) == ("key", key.id)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("careless:x", "does not bind"),
        ("forgetful:x", "another key"),
        ("away:x", "is away"),
        ("file:none", "none"),
        ("nobody:x", "No installed package"),
        ("key", "no scheme"),
    ],
)
def test_what_does_not_pass(
    home: Path, capsys: pytest.CaptureFixture[str], uri: str, words: str
) -> None:
    assert main(["keys", "test", uri]) == 2
    assert words in capsys.readouterr().err


def test_a_provider_is_closed(home: Path) -> None:
    module = importlib.import_module("services_of_a_test")
    before = module.Bound.closed
    assert main(["keys", "test", "bound:x"]) == 0
    assert module.Bound.closed == before + 1


@pytest.mark.parametrize("uri", ["file:kek", "bound:x"])
def test_wrap_and_unwrap(home: Path, capsys: pytest.CaptureFixture[str], uri: str) -> None:
    assert main(["keygen", "kek"]) == 0
    words = ["keys", "wrap", uri, "key", "wrapped", "--context", "host=a"]
    assert main(words) == 0
    text = Path("wrapped").read_text()
    assert Path("key").read_text() not in text and stat.S_IMODE(os.stat("wrapped").st_mode) == 0o644
    assert main(words) == 2 and main([*words, "--force"]) == 0
    for context in ([], ["--context", "host=a"]):
        assert main(["keys", "unwrap", uri, "wrapped", "again", *context, "--force"]) == 0
        assert Path("again").read_text() == Path("key").read_text()
        assert stat.S_IMODE(os.stat("again").st_mode) == 0o600
    os.unlink("again")
    capsys.readouterr()
    assert main(["keys", "unwrap", uri, "wrapped", "again", "--context", "host=b"]) == 2
    found = capsys.readouterr().err
    assert "host=a" in found and "host=b" in found
    Path("wrapped").write_text(text.replace('"host": "a"', '"host": "b"'))
    assert main(["keys", "unwrap", uri, "wrapped", "again", "--context", "host=b"]) == 2
    assert not os.path.exists("again")


def test_what_is_wrapped_for_a_file_is_no_key_file(home: Path) -> None:
    """Nor the other way round: their purposes differ."""
    sealed.encrypt_file("plain", "sealed", Key.from_file("key"))
    data = Path("sealed").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    entry = json.loads(header["__metadata__"]["pyccmem"])["key"]
    Path("wrapped").write_text(json.dumps({"pyccmem.wrapped-key": 1, "key": entry}))
    assert main(["keys", "unwrap", "file:key", "wrapped", "out"]) == 2
    entry["context"]["pyccmem.purpose"] = "key-file"
    Path("wrapped").write_text(json.dumps({"pyccmem.wrapped-key": 1, "key": entry}))
    assert main(["keys", "unwrap", "file:key", "wrapped", "out"]) == 2
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\xff",
        '{"pyccmem.wrapped-key": 2, "key": {}}',
        '{"pyccmem.wrapped-key": 1, "key": {}}',
        '{"pyccmem.wrapped-key": 1, "key": 7}',
        '{"pyccmem.wrapped-key": 1, "pyccmem.wrapped-key": 1, "key": 7}',
        "[" * 100_000,
    ],
)
def test_files_that_hold_no_wrapped_key(
    home: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    Path("wrapped").write_bytes(text.encode("latin-1"))
    assert main(["keys", "unwrap", "file:key", "wrapped", "out"]) == 2
    assert "Traceback" not in capsys.readouterr().err and not os.path.exists("out")


# ---- the commands for sealed files ----


def test_every_command_takes_a_uri(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", Path("key").read_text())
    assert main(["encrypt", "plain", "sealed", "--key", "env:A_KEY"]) == 0
    for words in (
        ["inspect", "sealed", "--key", "file:key"],
        ["verify", "sealed", "--key-file", "key"],
        ["rewrap", "sealed", "--key", "file:key", "--new-key", "bound:x"],
        ["verify", "sealed", "--key", "bound:x"],
        ["decrypt", "sealed", "again", "--key", "bound:x"],
    ):
        assert main(words) == 0, words
    capsys.readouterr()
    assert main(["verify", "sealed", "--key", "file:key"]) == 2
    assert "bound" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["verify", "sealed", "--key", "file:key", "--key-file", "key"])


def test_contexts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = ["--key", "file:key"]
    words = ["encrypt", "plain", "sealed", *key, "--context", "tenant=a", "--context", "x=1=2"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["inspect", "sealed"]) == 0
    out = capsys.readouterr().out
    assert "context tenant" in out and "1=2" in out
    for command in (["inspect"], ["verify"], ["rewrap"], ["decrypt"]):
        rest = ["out"] if command == ["decrypt"] else []
        new = ["--new-key", "file:key"] if command == ["rewrap"] else []
        good = [*command, "sealed", *rest, *key, *new, "--context", "tenant=a"]
        bad = [*good[:-1], "tenant=b"]
        assert main(bad) != 0, command
        found = capsys.readouterr()
        assert "tenant=a" in found.err + found.out and "tenant=b" in found.err + found.out
        assert main(good) == 0, command
    new = ["--new-key", "file:key", "--new-context", "tenant=c"]
    assert main(["rewrap", "sealed", *key, *new]) == 0
    assert main(["inspect", "sealed", *key, "--context", "tenant=c", "--json"]) == 0
    capsys.readouterr()
    for wrong in ("tenant", "=x", "pyccmem.file_id=x", "a" * 200 + "=b"):
        assert main(["verify", "sealed", *key, "--context", wrong]) == 2
    twice = ["--context", "a=1", "--context", "a=2"]
    assert main(["verify", "sealed", *key, *twice]) == 2


def test_directories(home: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    model = tmp_path / "model"
    model.mkdir()
    package.save_file({"bias": np.ones(9)}, model / "model.safetensors", metadata={"format": "pt"})
    (model / "config.json").write_text('{"model_type": "bert"}')
    key, good, bad = ["--key", "file:key"], ["--context", "m=1"], ["--context", "m=2"]
    assert main(["encrypt", str(model), "there", *key, *good]) == 0
    assert main(["verify", "there", *key, *bad]) == 1
    assert main(["verify", "there", *key, *good]) == 0
    assert main(["decrypt", "there", "again", *key, *bad]) == 2 and not os.path.exists("again")
    assert main(["decrypt", "there", "again", *key, *good]) == 0
