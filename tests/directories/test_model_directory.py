# SPDX-License-Identifier: Apache-2.0
"""Model directories sealed and opened again: what is copied, marked, refused, and left behind."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyccmem import Key, errors
from pyccmem import safetensors as sealed
from pyccmem.directories import decrypt_directory, encrypt_directory
from pyccmem.directories.marks import WEIGHTS_ELSEWHERE, mark_directory, sealed_name

plain = pytest.importorskip("safetensors.numpy", reason="needs the package safetensors")

CONFIG = {"model_type": "bert", "hidden_size": 8, "architectures": ["BertModel"]}
WEIGHTS = {
    "layer.weight": np.arange(6000, dtype=np.float32).reshape(60, 100),
    "layer.bias": np.arange(60, dtype=np.float32),
}


def write_json(path: Path, contents: object) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory as transformers makes it, with a tokenizer and a hidden one beside it."""
    path = tmp_path / "model"
    (path / ".git" / "lfs").mkdir(parents=True)
    (path / ".git" / "lfs" / "object").write_bytes(b"the weights once more")
    plain.save_file(WEIGHTS, path / "model.safetensors", metadata={"format": "pt"})
    write_json(path / "config.json", CONFIG)
    (path / "vocab.txt").write_text("[UNK]\n")
    return path


def shard(path: Path) -> None:
    """Cuts the model's file into two, with their index."""
    (path / "model.safetensors").unlink()
    names = {}
    for number, (name, array) in enumerate(WEIGHTS.items(), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        plain.save_file({name: array}, path / file, metadata={"format": "pt"})
        names[name] = file
    write_json(
        path / "model.safetensors.index.json",
        {"metadata": {"total_size": 24240}, "weight_map": names},
    )


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def holds_plaintext(path: Path) -> bool:
    """Whether a file of the directory has a piece of a weight as it is."""
    piece = WEIGHTS["layer.weight"].tobytes()[1000:1064]
    return any(piece in contents for contents in tree(path).values())


def test_sealed_and_opened(model: Path, tmp_path: Path, key: Key) -> None:
    out, back = tmp_path / "sealed", tmp_path / "back"
    assert holds_plaintext(model)
    encrypt_directory(model, out, key=key)
    assert sorted(tree(out)) == ["config.json", "model.safetensors", "vocab.txt"]
    assert not holds_plaintext(out)
    assert sealed.is_sealed(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text()) == {
        **CONFIG,
        "quantization_config": {"quant_method": "pyccmem"},
        "transformers_weights": WEIGHTS_ELSEWHERE,
    }
    assert (out / "vocab.txt").read_text() == "[UNK]\n"
    for name, tensor in sealed.load_file(out / "model.safetensors", key=key).items():
        np.testing.assert_array_equal(tensor[...], WEIGHTS[name])

    decrypt_directory(out, back, key=key)
    assert json.loads((back / "config.json").read_text()) == CONFIG
    for name, array in plain.load_file(back / "model.safetensors").items():
        np.testing.assert_array_equal(array, WEIGHTS[name])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "model", "sealed"]


@pytest.mark.parametrize("seal_names", [False, True])
def test_shards(model: Path, tmp_path: Path, key: Key, seal_names: bool) -> None:
    shard(model)
    index = json.loads((model / "model.safetensors.index.json").read_text())
    out, back = tmp_path / "sealed", tmp_path / "back"
    encrypt_directory(model, out, key=key, seal_names=seal_names)
    files = tree(out)
    name = "model.sealed.safetensors.index.json" if seal_names else "model.safetensors.index.json"
    found = json.loads(files[name])
    assert set(found["weight_map"].values()) == set(index["weight_map"].values())
    assert any(b"layer.weight" in contents for contents in files.values()) is not seal_names
    marks = json.loads(files["config.json"])["quantization_config"]
    assert marks == {"quant_method": "pyccmem", **({"weights": name} if seal_names else {})}
    decrypt_directory(out, back, key=key)
    assert json.loads((back / "model.safetensors.index.json").read_text()) == index
    assert json.loads((back / "config.json").read_text()) == CONFIG


def test_hidden_names_take_the_usual_name_away(model: Path, tmp_path: Path, key: Key) -> None:
    """A program that looks for the usual file must not find one in which it misses every name."""
    encrypt_directory(model, tmp_path / "sealed", key=key, seal_names=True)
    files = tree(tmp_path / "sealed")
    assert "model.safetensors" not in files and "model.sealed.safetensors" in files
    assert not any(b"layer.weight" in contents for contents in files.values())
    decrypt_directory(tmp_path / "sealed", tmp_path / "back", key=key)
    assert set(plain.load_file(tmp_path / "back" / "model.safetensors")) == set(WEIGHTS)


def test_sentence_transformers(model: Path, tmp_path: Path, key: Key) -> None:
    """Nested folders are sealed; only transformers' own config.json is marked."""
    dense = {"in_features": 8, "out_features": 4}
    (model / "2_Dense").mkdir()
    write_json(model / "2_Dense" / "config.json", dense)
    plain.save_file({"linear.weight": WEIGHTS["layer.weight"]}, model / "2_Dense/model.safetensors")
    write_json(model / "modules.json", [{"path": ""}, {"path": "2_Dense"}])
    for name in ("sealed", "hidden"):
        encrypt_directory(model, tmp_path / name, key=key, seal_names=name == "hidden")
        assert sealed.is_sealed(tmp_path / name / "2_Dense" / "model.safetensors")
        assert json.loads((tmp_path / name / "2_Dense/config.json").read_text()) == dense
        assert (tmp_path / name / "modules.json").read_bytes() == (
            model / "modules.json"
        ).read_bytes()
        assert not holds_plaintext(tmp_path / name)


def test_links_to_files_are_followed(model: Path, tmp_path: Path, key: Key) -> None:
    """As in caches of downloaded models, whose names are links into a folder of contents."""
    (tmp_path / "blobs").mkdir()
    for name in ("model.safetensors", "config.json"):
        os.rename(model / name, tmp_path / "blobs" / name)
        (model / name).symlink_to(tmp_path / "blobs" / name)
    encrypt_directory(model, tmp_path / "sealed", key=key)
    assert not (tmp_path / "sealed" / "model.safetensors").is_symlink()
    assert sealed.is_sealed(tmp_path / "sealed" / "model.safetensors")


def pickled(path: Path) -> None:
    (path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def disguised(path: Path) -> None:
    (path / "notes").write_bytes(b"\x80\x04\x95more of a pickle")


def disguised_zip(path: Path) -> None:
    (path / "archive").write_bytes(b"PK\x03\x04" + bytes(26) + b"archive/data.pkl")


def gguf(path: Path) -> None:
    (path / "model.q4").write_bytes(b"GGUF\x03\0\0\0")


def linked_folder(path: Path) -> None:
    (path / "other").symlink_to("/tmp")


def pipe(path: Path) -> None:
    os.mkfifo(path / "pipe")


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def no_shard(path: Path) -> None:
    shard(path)
    (path / "model-00002-of-00002.safetensors").unlink()


def no_index(path: Path) -> None:
    shard(path)
    write_json(path / "model.safetensors.index.json", {"weight_map": ["model.safetensors"]})


def quantized(path: Path) -> None:
    write_json(path / "config.json", {**CONFIG, "quantization_config": {"quant_method": "aqlm"}})


def no_json(path: Path) -> None:
    (path / "config.json").write_text("{")


def no_object(path: Path) -> None:
    (path / "config.json").write_text("[]")


def no_safetensors(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"not weights")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, "pytorch_model.bin"),
        (disguised, "notes"),
        (disguised_zip, "archive"),
        (gguf, "model.q4"),
        (linked_folder, "other"),
        (pipe, "pipe"),
        (no_weights, "has no safetensors file"),
        (no_shard, "model-00002-of-00002.safetensors"),
        (no_index, "model.safetensors.index.json"),
        (quantized, "aqlm"),
        (no_json, "config.json"),
        (no_object, "config.json"),
        (no_safetensors, None),
    ],
)
def test_refused(
    model: Path, tmp_path: Path, key: Key, spoil: Callable[[Path], None], said: str | None
) -> None:
    spoil(model)
    with pytest.raises(errors.FileFormatError, match=said):
        encrypt_directory(model, tmp_path / "sealed", key=key)
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "nothing is left behind"


def test_excluded(model: Path, tmp_path: Path, key: Key) -> None:
    pickled(model)
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"\x08")
    encrypt_directory(model, tmp_path / "sealed", key=key, exclude=["*.bin", "onnx"])
    assert sorted(tree(tmp_path / "sealed")) == ["config.json", "model.safetensors", "vocab.txt"]


def test_wrong_directories(model: Path, tmp_path: Path, key: Key) -> None:
    encrypt_directory(model, tmp_path / "sealed", key=key)
    for src, dst, error in (
        (tmp_path / "absent", tmp_path / "new", errors.ArgumentError),
        (model / "config.json", tmp_path / "new", errors.ArgumentError),
        (model, tmp_path / "sealed", errors.ArgumentError),
        (model, model, errors.ArgumentError),
        (model, model / "inside", errors.ArgumentError),
        (model, tmp_path / "absent" / "new", errors.ArgumentError),
        (tmp_path / "sealed", tmp_path / "new", errors.FileFormatError),
    ):
        with pytest.raises(error):
            encrypt_directory(src, dst, key=key)
    with pytest.raises(errors.FileFormatError, match="no sealed file"):
        decrypt_directory(model, tmp_path / "new", key=key)
    with pytest.raises(errors.ArgumentError, match="exists already"):
        decrypt_directory(tmp_path / "sealed", model, key=key)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "sealed"]
    assert "inside" not in {p.name for p in model.iterdir()}


def test_another_key_leaves_nothing(model: Path, tmp_path: Path, key: Key) -> None:
    encrypt_directory(model, tmp_path / "sealed", key=key)
    with Key.generate() as other, pytest.raises(errors.PyccmemError):
        decrypt_directory(tmp_path / "sealed", tmp_path / "back", key=other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "sealed"]


def test_damage_leaves_nothing(model: Path, tmp_path: Path, key: Key) -> None:
    encrypt_directory(model, tmp_path / "sealed", key=key)
    file = tmp_path / "sealed" / "model.safetensors"
    contents = bytearray(file.read_bytes())
    contents[9000] ^= 1
    file.write_bytes(contents)
    with pytest.raises(errors.IntegrityError, match="layer"):
        decrypt_directory(tmp_path / "sealed", tmp_path / "back", key=key)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "sealed"]


def test_modes_are_kept(model: Path, tmp_path: Path, key: Key) -> None:
    (model / "vocab.txt").chmod(0o640)
    model.chmod(0o750)
    encrypt_directory(model, tmp_path / "sealed", key=key)
    assert stat.S_IMODE((tmp_path / "sealed").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "sealed" / "vocab.txt").stat().st_mode) == 0o640


def test_an_explicit_file_of_weights_is_kept(model: Path, tmp_path: Path, key: Key) -> None:
    os.rename(model / "model.safetensors", model / "mine.safetensors")
    config = {**CONFIG, "transformers_weights": "mine.safetensors"}
    write_json(model / "config.json", config)
    encrypt_directory(model, tmp_path / "sealed", key=key)
    found = json.loads((tmp_path / "sealed" / "config.json").read_text())
    assert found["transformers_weights"] == WEIGHTS_ELSEWHERE
    assert found["quantization_config"]["weights"] == "mine.safetensors"
    decrypt_directory(tmp_path / "sealed", tmp_path / "back", key=key)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


def test_names_hidden_in_several_ways_are_refused(model: Path, tmp_path: Path, key: Key) -> None:
    plain.save_file(WEIGHTS, model / "model.fp16.safetensors")
    with pytest.raises(errors.ArgumentError, match=r"model\.fp16\.safetensors"):
        encrypt_directory(model, tmp_path / "sealed", key=key, seal_names=True)
    assert sealed_name("a/model.safetensors", None) == ("a/model.safetensors", False)
    hidden = sealed_name("a/model.safetensors", "model.sealed.safetensors")
    assert hidden == ("a/model.sealed.safetensors", True)
    with pytest.raises(errors.ArgumentError, match="max_shard_size"):
        sealed_name("a/model-00001-of-00002.safetensors", "model.sealed.safetensors")


def test_mark_directory(tmp_path: Path) -> None:
    mark_directory(tmp_path)
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "config.json", CONFIG)
    mark_directory(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    ours = {**CONFIG, "quantization_config": {"quant_method": "pyccmem"}}
    write_json(tmp_path / "config.json", ours)
    mark_directory(tmp_path)
    marked = {**ours, "transformers_weights": WEIGHTS_ELSEWHERE}
    assert json.loads((tmp_path / "config.json").read_text()) == marked
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
