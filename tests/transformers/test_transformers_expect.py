# SPDX-License-Identifier: Apache-2.0
"""Pins of what from_pretrained() loads: of the directory, of its files, refused in each other
state."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers as stock

import pyccmem.transformers
from pyccmem import Key, errors
from pyccmem.directories import directory_pin, encrypt_directory, pins_of, rotate_directory
from pyccmem.safetensors import save_file
from pyccmem.transformers import PyccmemConfig

IDS = torch.arange(3, 15)[None]


@pytest.fixture
def sealed(tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A small BERT in a plain and in a sealed directory, and the pins of the latter."""
    monkeypatch.delenv(pyccmem.transformers.KEY_FILE_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = stock.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    torch.manual_seed(1)
    with torch.no_grad():
        model = stock.BertModel(config).eval()
        model.save_pretrained(tmp_path / "plain")
        pins = encrypt_directory(tmp_path / "plain", tmp_path / "sealed", key=key)
        yield tmp_path / "sealed", tmp_path / "plain", pins, model(IDS).last_hidden_state


def load(path: Path, key: Key, expect: Any) -> Any:
    config = PyccmemConfig(key=key, expect=expect)
    return stock.BertModel.from_pretrained(path, quantization_config=config).eval()


def test_pins_of_a_directory_and_of_files(sealed: Any, key: Key) -> None:
    path, _, pins, expected = sealed
    (name,) = pins
    for expect in (None, directory_pin(pins), pins[name], pins):
        assert torch.allclose(load(path, key, expect)(IDS).last_hidden_state, expected, atol=1e-5)
    with Key.generate() as new:
        done = rotate_directory(path, key, new)
        assert torch.allclose(load(path, new, done.pin)(IDS).last_hidden_state, expected, atol=1e-5)
        load(path, new, pins)  # a later generation of the same file
        with pytest.raises(errors.IntegrityError, match="state that was expected"):
            load(path, new, directory_pin(pins))


@pytest.mark.parametrize("how", ["other", "added", "plain"])
def test_another_state_is_refused(sealed: Any, key: Key, how: str) -> None:
    path, plain, pins, _ = sealed
    (name,) = pins
    if how == "other":
        encrypt_directory(plain, path.parent / "again", key=key)
        (path.parent / "again" / name).replace(path / name)
    elif how == "added":
        save_file({}, path / "more.safetensors", key=key)
    else:
        (plain / name).replace(path / name)
        config = json.loads((path / "config.json").read_text())
        for entry in ("quantization_config", "transformers_weights"):
            config.pop(entry, None)
        (path / "config.json").write_text(json.dumps(config))
    with pytest.raises((errors.IntegrityError, errors.FileFormatError)):
        load(path, key, directory_pin(pins))
    if how == "added":
        load(path, key, pins)
    else:
        with pytest.raises((errors.IntegrityError, errors.FileFormatError)):
            load(path, key, pins)
        load(path, key, None)  # the control


def test_what_is_no_pin(key: Key) -> None:
    for bad in ("x", "dir:1", {"a": "b"}):
        with pytest.raises(errors.ArgumentError, match="pin"):
            PyccmemConfig(key=key, expect=bad)
    for wrong in (5, {"a": 5}):
        with pytest.raises(errors.ArgumentTypeError, match="pin"):
            PyccmemConfig(key=key, expect=wrong)  # type: ignore[arg-type]


def test_a_context_is_demanded_and_given_on(sealed: Any, key: Key, tmp_path: Path) -> None:
    _, plain, _, expected = sealed
    path, context = tmp_path / "bound", {"model": "bert"}
    encrypt_directory(plain, path, key=key, context=context)
    pin = directory_pin(pins_of(path, key))
    good = PyccmemConfig(key=key, context=context, expect=pin)
    model = stock.BertModel.from_pretrained(path, quantization_config=good).eval()
    assert torch.allclose(model(IDS).last_hidden_state, expected, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    for at in (path, tmp_path / "saved"):
        with pytest.raises(errors.ContextError, match=r"model=bert, and model=beru is needed"):
            stock.BertModel.from_pretrained(
                at, quantization_config=PyccmemConfig(key=key, context={"model": "beru"})
            )
        stock.BertModel.from_pretrained(at, quantization_config=PyccmemConfig(key=key))
    with pytest.raises(errors.FileFormatError, match="`context` asks for a sealed file"):
        stock.BertModel.from_pretrained(
            plain, quantization_config=PyccmemConfig(key=key, context=context)
        )
    with pytest.raises(errors.ArgumentError, match=r"pyccmem\."):
        PyccmemConfig(key=key, context={"pyccmem.format": "1"})
    pyccmem.transformers.save_pretrained(model, tmp_path / "mine", key=key, context={"by": "me"})
    with pytest.raises(errors.ContextError, match="by=me"):
        pins_of(tmp_path / "mine", key, context={"by": "you"})


def test_a_pickled_config_has_no_key_and_all_demands(key: Key) -> None:
    given = PyccmemConfig(
        key=key, expect=f"dir:{'0' * 64}", context={"a": "b"}, mmap=False, quantize="q8_0"
    )
    kept = pickle.loads(pickle.dumps(given))
    assert kept.key is None and not kept.mmap and kept.context == {"a": "b"}
    assert kept.demands == ["expect", "context"]
    assert kept.formats() == given.formats() or vars(kept.formats()) == vars(given.formats())
    with pytest.raises(errors.PyccmemError):
        kept.expected(__file__, key)
