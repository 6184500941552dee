# SPDX-License-Identifier: Apache-2.0
"""Keys and values that were sealed are overwritten where they came from, when asked. That no model
misses them is shown by test_encrypted_generate, where all models work so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import tiny_models
import torch

from pyccmem import errors
from pyccmem.core.kv_tables import KVTables
from pyccmem.transformers import (
    EncryptedCache,
    EncryptedEncoderDecoderCache,
    protected_inputs,
)
from pyccmem.transformers.layers import EncryptedLayer

Given = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Given]:
    """What update() was given, as it is afterwards."""
    kept: Given = []
    update = EncryptedLayer.update

    def watched(layer: Any, key: torch.Tensor, value: torch.Tensor, *args: Any, **more: Any) -> Any:
        assert key.any() and value.any(), "zeros before they are sealed"
        result = update(layer, key, value, *args, **more)
        kept.append((key, value))
        return result

    monkeypatch.setattr(EncryptedLayer, "update", watched)
    yield kept
    assert kept


def all_zeros(given: Given) -> bool:
    return not any(bool(states.any()) for pair in given for states in pair)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_of_a_protected_model(given: Given, name: str, overwrite: bool) -> None:
    """gpt2's are parts of one tensor that has the queries as well."""
    model = tiny_models.decoder(name)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(tiny_models.prompt(2, 9), **options)
    with protected_inputs(model, **({} if overwrite else {"overwrite": False})):
        found = model.generate(tiny_models.prompt(2, 9), **options)
        kept = EncryptedCache(model.config, overwrite=not overwrite)
        given_cache = model.generate(tiny_models.prompt(2, 9), cache=kept, **options)
        assert kept.overwrite == overwrite
        with torch.no_grad():
            made_inside = model(tiny_models.prompt(1, 3), use_cache=True).cache
    assert made_inside.overwrite == overwrite
    assert torch.equal(found, wanted) and torch.equal(given_cache, wanted)
    assert all_zeros(given) == overwrite


def test_of_an_encoder_decoder(given: Given) -> None:
    model = tiny_models.encoder_decoder("t5")
    assert not EncryptedEncoderDecoderCache(model.config).cross_attention_cache.overwrite
    options = {"max_new_tokens": 4, "do_sample": False}
    wanted = model.generate(tiny_models.prompt(1, 6), **options)
    with protected_inputs(model):
        assert torch.equal(model.generate(tiny_models.prompt(1, 6), **options), wanted)
    assert all_zeros(given)
    both = EncryptedEncoderDecoderCache(model.config, overwrite=True).fork()
    assert both.self_attention_cache.overwrite and both.cross_attention_cache.overwrite


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


#: Keys of shape (1, 2, 4, 8), the tensor that they are a view of, and what of it is theirs.
FORMS: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor, Any]]] = {
    "by themselves": lambda: (base := normal(1, 2, 4, 8), base, ...),
    "between others": lambda: (
        (base := normal(1, 4, 3, 2, 8))[:, :, 1].transpose(1, 2),
        base,
        (slice(None), slice(None), 1),
    ),
    "expanded": lambda: ((base := normal(1, 1, 4, 8)).expand(1, 2, 4, 8), base, ...),
    "with gaps in the last axis": lambda: (
        (base := normal(1, 2, 4, 16))[..., ::2],
        base,
        (..., slice(0, None, 2)),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_else_is_overwritten(form: str, mode: Any) -> None:
    with mode():
        key, base, theirs = FORMS[form]()
        wanted, value = base.clone(), normal(1, 2, 4, 8)
        wanted[theirs] = 0
        sealed, cache = key.clone(), EncryptedCache(overwrite=True)
    handle, _ = cache.update(key, value, 0)
    with pytest.warns(errors.OpenedCacheWarning):
        assert torch.equal(handle.clone(), sealed)
    assert not value.any()
    assert torch.equal(base, wanted)


def test_also_when_they_cannot_be_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EncryptedCache(overwrite=True)
    cache.update(normal(1, 2, 4, 8), normal(1, 2, 4, 8), 0)

    def fails(*_: Any) -> None:
        raise errors.OutOfMemoryError("no memory")

    monkeypatch.setattr(KVTables, "append", fails)
    key, value = normal(1, 2, 1, 8), normal(1, 2, 1, 8)
    with pytest.raises(errors.OutOfMemoryError):
        cache.update(key, value, 0)
    assert all_zeros([(key, value)]) and cache.get_seq_length() == 4


def test_a_users_own_stay() -> None:
    key, value = normal(1, 2, 4, 8), normal(1, 2, 4, 8)
    cache = EncryptedCache()
    cache.update(key, value, 0)
    assert torch.equal(key, normal(1, 2, 4, 8)) and torch.equal(value, key)
    cache.overwrite = True
    cache.fork().update(key, value, 0)
    assert all_zeros([(key, value)])
