# SPDX-License-Identifier: Apache-2.0
"""Models in several GGUF files, as llama-gguf-split and the package gguf write them: sealed as a
set, opened as one model, and refused if their files do not belong together."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the package gguf")

import gguf as package
import gguf_models
import support

from pyccmem import EncryptedTensor, Key, QuantizedTensor, directories, errors, gguf
from pyccmem.cli.commands.keygen import write_key_file

#: Files of a model of 22 tensors, at most 9 in each.
COUNT = 3


def names(model: str = "m") -> list[str]:
    return [f"{model}-{number:05}-of-{COUNT:05}.gguf" for number in range(1, COUNT + 1)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model in one file, and the same in three."""
    folder = tmp_path_factory.mktemp("plain")
    gguf_models.write(folder / "whole.gguf", "llama")
    gguf_models.write(folder / "m.gguf", "llama", split=9)
    assert sorted(path.name for path in folder.iterdir()) == [*names(), "whole.gguf"]
    return folder


@pytest.fixture
def sealed(plain: Path, tmp_path: Path, key: Key) -> Path:
    directories.encrypt_directory(plain, tmp_path / "sealed", key=key)
    return tmp_path / "sealed"


def first(folder: Path) -> Path:
    return folder / f"{names()[0]}.sealed"


def part(folder: Path, number: int) -> Path:
    return folder / f"{names()[number - 1]}.sealed"


def test_all_tensors_of_all_files(sealed: Path, plain: Path, key: Key) -> None:
    with (
        gguf.open_model(first(sealed), key) as model,
        gguf.open_model(sealed / "whole.gguf.sealed", key) as whole,
    ):
        assert len(model.files) == COUNT and len(whole.files) == 1
        assert set(model) == set(whole) and len(model) == 22
        assert model.metadata["general.architecture"] == "llama"
        assert "general.architecture" not in model.files[1].metadata
        for name in model:
            ours, theirs = model.tensor(name), whole.tensor(name)
            assert model.info(name).type == whole.info(name).type
            assert np.array_equal(model.raw(name)[...], whole.raw(name)[...])
            assert type(ours) is type(theirs) and ours.shape == theirs.shape
            assert isinstance(ours, (QuantizedTensor, EncryptedTensor))
        assert model.tensors.keys() == set(model.keys())
        assert "blk.0.attn_q.weight" in model and "blk.9.attn_q.weight" not in model
        with pytest.raises(errors.FileRequestError, match="no tensor"):
            model.tensor("blk.9.attn_q.weight")
    with pytest.raises(errors.ClosedFileError):
        model.keys()
    assert model.closed and all(file.closed for file in model._files)
    # And back, byte for byte.
    for name in names():
        gguf.unseal(sealed / f"{name}.sealed", sealed / "back", key, overwrite=True)
        assert (sealed / "back").read_bytes() == (plain / name).read_bytes()


def test_any_of_the_files_names_the_model(sealed: Path, key: Key) -> None:
    with gguf.open_model(part(sealed, 3), key) as model:
        assert model.metadata["general.name"] == "tiny llama" and len(model) == 22


def test_a_file_is_missing(sealed: Path, key: Key) -> None:
    part(sealed, 2).unlink()
    with pytest.raises(errors.FileReadError, match=r"00002-of-00003.*3 files") as caught:
        gguf.open_model(first(sealed), key)
    assert caught.value.errno == 2


def test_files_of_two_models(sealed: Path, plain: Path, tmp_path: Path, key: Key) -> None:
    """The same model, sealed a second time: its files do not go with those of the first. The
    control: files sealed without a set go together."""
    directories.encrypt_directory(plain, tmp_path / "second", key=key)
    shutil.copy(part(tmp_path / "second", 2), part(sealed, 2))
    with pytest.raises(errors.FileFormatError, match="not sealed together"):
        gguf.open_model(first(sealed), key)
    for name in names():
        gguf.seal(plain / name, sealed / f"{name}.sealed", key, overwrite=True)
    gguf.seal(plain / names()[1], part(sealed, 2), key, overwrite=True)
    with gguf.open_model(first(sealed), key) as model:
        assert len(model) == 22
    gguf.seal(plain / names()[1], part(sealed, 2), key, overwrite=True, set_id="another")
    with pytest.raises(errors.FileFormatError, match="not sealed together"):
        gguf.open_model(first(sealed), key)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("swapped", r"not file 2 of 3.*split\.no 2"),
        ("renamed", "its name does not say so"),
        ("whole", r"not file 2 of 3.*None"),
    ],
)
def test_files_in_wrong_places(sealed: Path, key: Key, change: str, match: str) -> None:
    path = first(sealed)
    if change == "swapped":
        part(sealed, 2).rename(sealed / "x")
        part(sealed, 3).rename(part(sealed, 2))
        (sealed / "x").rename(part(sealed, 3))
    elif change == "renamed":
        path = path.rename(sealed / "model.gguf.sealed")
    else:
        shutil.copy(sealed / "whole.gguf.sealed", part(sealed, 2))
    with pytest.raises(errors.FileFormatError, match=match):
        gguf.open_model(path, key)


def test_tensors_that_do_not_add_up(tmp_path: Path, key: Key) -> None:
    """Numbers are right, names or their count are not."""

    def write(number: int, tensors: list[str], total: int) -> None:
        path = tmp_path / names()[number]
        writer = package.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", COUNT)
        writer.add_int32("split.tensors.count", total)
        for name in tensors:
            writer.add_tensor(name, np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        gguf.seal(path, f"{path}.sealed", key, overwrite=True)

    for number in range(COUNT):
        write(number, [f"t{number}"], 3)
    assert len(gguf.open_model(first(tmp_path), key)) == 3
    write(2, ["t0"], 3)
    with pytest.raises(errors.FileFormatError, match="Two files of the model have a tensor 't0'"):
        gguf.open_model(first(tmp_path), key)
    write(2, ["t2", "t3"], 3)
    with pytest.raises(errors.FileFormatError, match=r"have 4 tensors together.*3"):
        gguf.open_model(first(tmp_path), key)


def test_pins(sealed: Path, plain: Path, tmp_path: Path, key: Key) -> None:
    pins = directories.encrypt_directory(plain, tmp_path / "second", key=key)
    path = first(tmp_path / "second")
    with gguf.open_model(path, key, expect=pins) as model:
        found = model.pins
    assert found == tuple(pins[f"{name}.sealed"] for name in names())
    gguf.open_model(path, key, expect=found).close()
    with pytest.raises(errors.IntegrityError):
        gguf.open_model(first(sealed), key, expect=pins)
    for wrong in (found[:2], found[0], {names()[0]: found[0]}, 7):
        wrong_any: Any = wrong
        with pytest.raises(errors.ArgumentError, match="pins of all 3 files"):
            gguf.open_model(path, key, expect=wrong_any)
    whole = tmp_path / "second" / "whole.gguf.sealed"
    pin = pins["whole.gguf.sealed"]
    for right in (pin, [pin], pins):
        gguf.open_model(whole, key, expect=right).close()
    with pytest.raises(errors.IntegrityError):
        gguf.open_model(sealed / "whole.gguf.sealed", key, expect=pin)


def test_names() -> None:
    split = gguf.split_of("big-model-00002-of-00010.gguf.sealed")
    assert split == ("big-model", 2, 10, ".gguf.sealed")
    assert split.name(10) == "big-model-00010-of-00010.gguf.sealed"
    for name in ("m.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m-1-of-2.gguf"):
        assert gguf.split_of(name) is None
    with pytest.raises(errors.ArgumentTypeError, match="open_model"):
        gguf.SealedModel()


def test_what_is_no_set(plain: Path, key: Key) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="set_id"):
        gguf.seal(plain / "whole.gguf", plain / "x", key, set_id=7)  # type: ignore[arg-type]
    with pytest.raises(errors.FileFormatError, match="plain GGUF file"):
        gguf.open_model(plain / "whole.gguf", key)
    with pytest.raises(errors.FileReadError):
        gguf.open_model(plain / "none.gguf.sealed", key)


def test_the_command_tells_of_the_other_files(plain: Path, tmp_path: Path, key: Key) -> None:
    """One file alone is sealed as it is asked for, with a word about the others."""
    write_key_file(tmp_path / "key", key)

    def encrypt(name: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "pyccmem", "encrypt", str(plain / name), str(tmp_path / name),
             "--key-file", str(tmp_path / "key")],
            capture_output=True, text=True, timeout=60, check=True,
        ).stderr  # fmt: skip

    assert "is file 2 of 3 of a model; encrypt the directory" in encrypt(names()[1])
    assert "of a model" not in encrypt("whole.gguf")


def test_a_forked_child_opens_the_files_anew(plain: Path, tmp_path: Path, key: Key) -> None:
    write_key_file(tmp_path / "key", key)
    kept = Key.from_file(tmp_path / "key")
    directories.encrypt_directory(plain, tmp_path / "sealed", key=kept)
    with gguf.open_model(first(tmp_path / "sealed"), kept) as model:
        raws = [model.raw(next(iter(file))) for file in model.files]
    wanted = [raw[...].tobytes() for raw in raws]

    def work() -> None:
        assert [raw[...].tobytes() for raw in raws] == wanted

    support.in_forked_child(work)
