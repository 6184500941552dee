# SPDX-License-Identifier: Apache-2.0
"""Directories as a whole: what encrypt prints of one, who can read it, and verify, inspect and
rewrap over all of its files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import support

from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.cli import main
from pyccmem.directories import encrypt_directory

NAMES = ["1_Dense/model.safetensors", "model-1.safetensors", "model-2.safetensors"]
WITH_KEY = ["--key-file", "key"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a key file "key" and a model "model"."""
    package = pytest.importorskip("safetensors.numpy")
    monkeypatch.chdir(tmp_path)
    assert main(["keygen", "key"]) == 0
    for at, name in enumerate(NAMES):
        Path("model", name).parent.mkdir(parents=True, exist_ok=True)
        package.save_file({f"w{at}": np.arange(3000, dtype=np.float32)}, Path("model", name))
        Path("model", name).chmod(0o644)
    Path("model/config.json").write_text('{"model_type": "none"}')
    Path("model/notes.txt").write_text("notes")
    return tmp_path


@pytest.fixture
def copy(home: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The sealed copy, called "sealed"."""
    assert main(["encrypt", "model", "sealed", *WITH_KEY]) == 0
    capsys.readouterr()
    return home / "sealed"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 + 10] ^= 1
    path.write_bytes(data)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- encrypt -----------------------------------------------------------------------------------


def test_encrypt_prints_the_pins(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("model", NAMES[1]).chmod(0o640)
    capsys.readouterr()
    assert main(["encrypt", "model", "sealed", *WITH_KEY]) == 0
    shown = capsys.readouterr().out
    pins = {name: sealed.inspect_file(Path("sealed", name)).pin for name in NAMES}
    assert shown.splitlines()[0] == "sealed: 3 sealed, 2 other files"
    for name in NAMES:
        (line,) = [line for line in shown.splitlines() if line.split()[0] == name]
        assert line.split()[1:] == [pins[name], "0640" if name == NAMES[1] else "0644"]
    assert main(["encrypt", "model", "again", *WITH_KEY, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["directory"] == "again" and found["others"] == 2
    for entry in found["files"]:
        assert entry["pin"] == sealed.inspect_file(Path("again", entry["file"])).pin != pins
    assert sorted(entry["file"] for entry in found["files"]) == NAMES


def test_encrypt_returns_the_pins_of_renamed_files(home: Path, key: Key) -> None:
    Path("model", NAMES[1]).rename("model/model.safetensors")
    pins = encrypt_directory("model", "sealed", key=key, seal_names=True)
    assert "model.sealed.safetensors" in pins and len(pins) == 3
    for name, pin in pins.items():
        assert sealed.inspect_file(Path("sealed", name)).pin == pin


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_who_could_read_the_model_can_read_the_copy(home: Path, umask: int) -> None:
    modes = {"model-1.safetensors": 0o644, "model-2.safetensors": 0o600, "config.json": 0o644}
    for name, bits in modes.items():
        Path("model", name).chmod(bits)
    Path("model/1_Dense").chmod(0o750)
    Path("model").chmod(0o755)
    old = os.umask(umask)
    try:
        assert main(["encrypt", "model", "sealed", *WITH_KEY]) == 0
        assert main(["encrypt", "model/model-1.safetensors", "one", *WITH_KEY]) == 0
        assert main(["keygen", "another"]) == 0
        assert main(["decrypt", "sealed", "back", *WITH_KEY]) == 0
    finally:
        os.umask(old)
    for name, bits in {**modes, "1_Dense": 0o750, "": 0o755}.items():
        assert mode(Path("sealed", name)) == bits, name
    assert mode(Path("one")) == 0o644
    # What is secret is its owner's alone.
    assert mode(Path("another")) == 0o600
    assert {mode(Path("back", name)) for name in NAMES} == {0o600}
    assert mode(Path("back/config.json")) == 0o644


def test_a_file_that_is_replaced_keeps_its_mode(home: Path, key: Key) -> None:
    sealed.encrypt_file("model/model-1.safetensors", "one", key)
    Path("one").chmod(0o664)
    sealed.encrypt_file("model/model-2.safetensors", "one", key, overwrite=True)
    assert mode(Path("one")) == 0o664


def test_nobody_else_reads_a_file_that_is_not_whole(
    home: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its temporary file has mode 0600 until everything is in it."""
    seen = []
    real = os.pwrite

    def pwrite(descriptor: int, *rest: object) -> int:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return real(descriptor, *rest)

    monkeypatch.setattr(os, "pwrite", pwrite)
    sealed.encrypt_file("model/model-1.safetensors", "one", key)
    assert set(seen) == {0o600} and mode(Path("one")) == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away and to seal them")
def test_a_service_reads_what_root_sealed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.chmod(0o755)
    assert main(["encrypt", "model", "sealed", *WITH_KEY]) == 0
    assert "chown" not in capsys.readouterr().err

    def service() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for name in NAMES:
            assert len(Path("sealed", name).read_bytes()) > 4096
        with pytest.raises(PermissionError):
            Path("key").read_bytes()

    support.in_forked_child(service)
    for path in ["model", *(f"model/{name}" for name in [*NAMES, "config.json"])]:
        os.chown(path, 65534, 65534)
        os.chmod(path, 0o700 if path == "model" else 0o600)
    assert main(["encrypt", "model", "private", *WITH_KEY]) == 0
    assert "chown -R 65534:65534 private" in capsys.readouterr().err


# ---- verify ------------------------------------------------------------------------------------


def test_verify(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "sealed", *WITH_KEY]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "3 files: 3 whole"
    for name in NAMES:
        assert f"sealed/{name} " in shown and sealed.inspect_file(copy / name).pin in shown
    damage(copy / NAMES[0])
    assert main(["verify", "sealed", *WITH_KEY]) == 1
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "3 files: 2 whole, 1 damaged" and "w0: 1 of" in shown
    assert main(["verify", "sealed", *WITH_KEY, "--json"]) == 1
    found = {entry["file"]: entry["whole"] for entry in json.loads(capsys.readouterr().out)}
    assert found == {f"sealed/{name}": name != NAMES[0] for name in NAMES}


def test_a_plain_file_among_sealed_ones(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / NAMES[2]).write_bytes(Path("model", NAMES[2]).read_bytes())
    assert main(["verify", "sealed", *WITH_KEY]) == 1
    assert "plain safetensors file" in capsys.readouterr().out
    assert main(["inspect", "sealed"]) == 1
    assert "plain safetensors file" in capsys.readouterr().out


def test_one_error_does_not_hide_the_others(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keygen", "other"])
    (copy / NAMES[1]).unlink()
    (copy / NAMES[1]).symlink_to("nowhere")
    capsys.readouterr()
    assert main(["verify", "sealed", *WITH_KEY]) == 2
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "3 files: 2 whole, 1 not checked"
    damage(copy / NAMES[2])
    assert main(["verify", "sealed", *WITH_KEY]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "3 files: 1 whole, 1 damaged, 1 not checked"
    assert main(["verify", "sealed", "--key-file", "other"]) == 2
    assert "3 not checked" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_directories_that_cannot_be(
    copy: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert main([command, "empty", *WITH_KEY]) == 2
    assert "no *.safetensors and no *.gguf.sealed file" in capsys.readouterr().err
    assert main([command, "sealed", *WITH_KEY, "--expect", "0" * 32 + ":1"]) == 2
    assert "one file" in capsys.readouterr().err
    (copy / "link").symlink_to(copy / "1_Dense")
    assert main([command, "sealed", *WITH_KEY]) == 2
    assert "link to a directory" in capsys.readouterr().err


# ---- inspect and rewrap ------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], WITH_KEY], ids=["without the key", "with it"])
def test_inspect(copy: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "sealed", *words]) == 0
    shown = capsys.readouterr().out
    for name in NAMES:
        (line,) = [line for line in shown.splitlines() if line.split()[0] == name]
        assert sealed.inspect_file(copy / name).pin in line
        assert line.split()[-1] == ("yes" if words else "key")
    assert main(["inspect", "sealed", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in found] == [f"sealed/{name}" for name in NAMES]
    assert all(entry["authenticated"] is bool(words) for entry in found)
    assert all(entry["error"] is None and len(entry["tensors"]) == 1 for entry in found)


def test_rewrap(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keygen", "new"])
    assert main(["rewrap", "sealed", *WITH_KEY, "--new-key-file", "new"]) == 0
    assert main(["verify", "sealed", "--key-file", "new"]) == 0
    assert main(["verify", "sealed", *WITH_KEY]) == 2
    with pytest.raises(errors.InvalidKeyError), Key.from_file("key") as old:
        sealed.load_file(copy / NAMES[0], key=old)


@support.linux_only
def test_names_do_nothing_to_a_terminal(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / NAMES[1]).rename(copy / "\x1b[31m.safetensors")
    for words in (["verify", "sealed", *WITH_KEY], ["inspect", "sealed"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and "\\x1b" in shown
