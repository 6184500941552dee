# SPDX-License-Identifier: Apache-2.0
"""Sealed files, directories and key files of earlier versions open; one changed byte is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import earlier
import numpy as np
import pytest
from earlier import FOLDER, METADATA

import pyccmem
from pyccmem import errors
from pyccmem import safetensors as sealed
from pyccmem.cli import main as command

FEW = ("layer.bias", "counter")


def opens(name: str) -> Any:
    if name == "argon2id.safetensors":
        pytest.importorskip("argon2", reason="needs the extra pyccmem[argon2]")
    return earlier.OPENS[name]()


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    return (
        found.dtype == wanted.dtype
        and found.shape == wanted.shape
        and found.tobytes() == wanted.tobytes()
    )


@pytest.mark.parametrize("name", earlier.OPENS)
@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "read"])
def test_every_tensor_of_a_sealed_file(name: str, mmap: bool) -> None:
    values = earlier.values()
    wanted = values if name == "sealed.safetensors" else {each: values[each] for each in FEW}
    with sealed.safe_open(FOLDER / name, key=opens(name)) as file:
        assert file.metadata() == METADATA and set(file.keys()) == set(wanted)
    found = sealed.load_file(FOLDER / name, key=opens(name), mmap=mmap, sealed=True)
    for each, tensor in found.items():
        with tensor:
            assert tensor.cipher == "aegis-128x2" and same(tensor[...], wanted[each]), each
    sealed.verify_file(FOLDER / name, opens(name))


@pytest.mark.parametrize("name", earlier.OPENS)
def test_one_changed_byte_is_refused(name: str, tmp_path: Path) -> None:
    """The control: in a page, and in the header."""
    path = tmp_path / name
    content = (FOLDER / name).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in (header // 2, header + 4096 + 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises((errors.IntegrityError, errors.FileFormatError)):
            sealed.verify_file(path, opens(name))


def test_names_were_sealed() -> None:
    content = (FOLDER / "names.safetensors").read_bytes()
    assert b"layer" not in content and b"layer" in (FOLDER / "sealed.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["raw.key", "hexadecimal.key"])
def test_key_files(name: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / name, tmp_path))
    path.chmod(0o600)
    with pyccmem.Key.from_file(path) as key, earlier.key() as same_key:
        assert key.id == same_key.id
        assert sealed.inspect_file(FOLDER / "sealed.safetensors", key).authenticated


def test_a_directory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its marks are known, and it is decrypted to what it was made of."""
    key_file = Path(shutil.copy(FOLDER / "raw.key", tmp_path))
    key_file.chmod(0o600)
    plain = tmp_path / "plain"
    with_key = ["--key-file", str(key_file)]
    assert command(["verify", str(FOLDER / "directory"), *with_key]) == 0
    assert command(["decrypt", str(FOLDER / "directory"), str(plain), *with_key]) == 0
    capfd.readouterr()
    assert (plain / "config.json").read_text().split() == ["{", '"model_type":', '"bert"', "}"]
    with earlier.key() as key:
        found = sealed.load_file(plain / "model.safetensors", key=key)
        assert same(found["bias"][...], earlier.values()["layer.half"])
