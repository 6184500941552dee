# SPDX-License-Identifier: Apache-2.0
"""EncryptedCache by itself: what its layers keep, what is cropped, shared, refused and erased."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import tiny_models
import torch
from transformers import DynamicCache
from transformers.cache_utils import EncoderDecoderCache

import pyccmem.transformers
from pyccmem import Key, errors
from pyccmem.binding import lib, wiped
from pyccmem.transformers import EncryptedCache, EncryptedEncoderDecoderCache
from pyccmem.transformers.handles import Handle

GENERATOR = torch.Generator().manual_seed(3)


def states(
    tokens: int, sequences: int = 2, heads: int = 2, sizes: tuple[int, int] = (8, 8)
) -> tuple[torch.Tensor, torch.Tensor]:
    """New keys and values."""
    key, value = (
        torch.randn(sequences, heads, tokens, size, generator=GENERATOR) for size in sizes
    )
    return key, value


def opened(handle: Any) -> torch.Tensor:
    assert isinstance(handle, Handle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.OpenedCacheWarning)
        return handle.clone()


def contents(cache: Any, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What is in a layer without a window, by appending nothing."""
    sequences, heads, _ = cache.layers[layer].shape
    key, value = cache.update(
        *states(0, sequences, heads, cache.layers[layer].sizes), layer_idx=layer
    )
    return opened(key), opened(value)


@pytest.fixture
def windowed() -> Any:
    """The configuration of a model with a window of 5 in layer 0 and none in layer 1."""
    return tiny_models.decoder("gemma3").config


# ---- what is kept --------------------------------------------------------------------------------


def test_like_a_dynamic_cache(windowed: Any) -> None:
    """Shapes, masks' sizes and contents over a mixture of steps, with a window and without."""
    ours, plain = EncryptedCache(windowed), DynamicCache(config=windowed)
    for tokens in (3, 1, 1, 4, 1, 9, 1, 1):
        for layer in range(2):
            assert ours.get_mask_sizes(tokens, layer) == plain.get_mask_sizes(tokens, layer)
            new = states(tokens)
            found, wanted = ours.update(*new, layer), plain.update(*new, layer)
            for one, other in zip(found, wanted, strict=True):
                assert one.shape == other.shape and one.dtype == other.dtype
                assert torch.equal(opened(one), other)
        assert ours.get_seq_length() == plain.get_seq_length()
        assert ours.get_max_length() == plain.get_max_length()
    assert ours.is_sliding == plain.is_sliding == [True, False]
    assert ours.is_compileable is False and ours.is_croppable is True
    assert ours.is_initialized and len(ours) == 2


def test_without_a_config_layers_come_as_they_are_used() -> None:
    cache = EncryptedCache()
    assert len(cache) == 0 and cache.get_seq_length() == 0 and not cache.is_compileable
    assert cache.get_mask_sizes(4, 1) == (4, 0)
    cache.update(*states(4), 1)
    assert len(cache) == 2 and cache.get_seq_length(1) == 4 and cache.get_seq_length(0) == 0


def test_keys_and_values_of_different_widths_and_strides() -> None:
    cache = EncryptedCache()
    key, value = states(5, sizes=(12, 4))
    key = key.transpose(1, 2).contiguous().transpose(1, 2)  # as models make them
    value = torch.cat((value, value), 3)[..., ::2]  # rows that are not dense
    found = cache.update(key, value, 0)
    assert torch.equal(opened(found[0]), key) and torch.equal(opened(found[1]), value)


def test_nothing_plain_is_kept() -> None:
    """Neither a tensor in an attribute, nor plaintext in the pool once it is not used."""
    gc.collect()
    before = wiped.stats()["plain_blocks"]
    cache = EncryptedCache()
    key, value = cache.update(*states(40, heads=4), 0)
    with pytest.warns(errors.OpenedCacheWarning):
        total = (key + value).sum()
    assert torch.isfinite(total)
    view = key[:, :, 3]
    assert wiped.stats()["plain_blocks"] == before + 1
    assert view.shape == (2, 4, 8)
    del view
    assert wiped.stats()["plain_blocks"] == before
    shapes = [tuple(one.shape) for one in gc.get_objects() if type(one) is torch.Tensor]
    assert (2, 4, 40, 8) not in shapes
    del cache, key, value


def test_the_warning_comes_once_for_a_cache() -> None:
    cache = EncryptedCache()
    key, _ = cache.update(*states(3), 0)
    with pytest.warns(errors.OpenedCacheWarning, match='attn_implementation="pyccmem"'):
        key.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        key.sum()


def test_a_handle_is_of_one_moment() -> None:
    """What has changed since is refused, not given as something else."""
    cache = EncryptedCache()
    for change in (
        lambda: cache.update(*states(1), 0),
        lambda: cache.crop(-1),
        lambda: cache.reorder_cache(torch.tensor([1, 0])),
        lambda: cache.reset(),
    ):
        key, _ = cache.update(*states(3), 0)
        change()
        with pytest.raises(errors.ClosedError, match="has changed since"):
            key.sum()


def test_what_is_written_to_a_handle_is_refused() -> None:
    key, _ = EncryptedCache().update(*states(3), 0)
    for write in (lambda: key.zero_(), lambda: key.mul_(2), lambda: torch.add(1, 1, out=key)):
        with pytest.raises(errors.ArgumentError, match="read only"):
            write()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_int8(dtype: torch.dtype) -> None:
    cache = EncryptedCache(dtype="int8")
    key, value = (one.to(dtype) for one in states(20))
    for found, wanted in zip(cache.update(key, value, 0), (key, value), strict=True):
        assert found.dtype == dtype
        difference = (opened(found) - wanted).abs().amax(3)
        assert bool((difference <= wanted.abs().amax(3) / 127).all())
        assert float(difference.max()) > 0


# ---- crop ----------------------------------------------------------------------------------------


def test_crop_takes_tokens_to_remove() -> None:
    cache, (key, value) = EncryptedCache(), states(20)
    cache.update(key, value, 0)
    cache.crop(0)
    assert cache.get_seq_length() == 20
    cache.crop(-3)
    assert cache.get_seq_length() == 17
    assert torch.equal(contents(cache)[0], key[:, :, :17])
    new = states(2)
    found, _ = cache.update(*new, 0)
    assert torch.equal(opened(found), torch.cat((key[:, :, :17], new[0]), 2))
    cache.crop(-19)
    assert cache.get_seq_length() == 0
    cache.update(key, value, 0)
    assert torch.equal(contents(cache)[1], value)


@pytest.mark.parametrize(("tokens", "match"), [(3, "tokens to keep"), (-21, "more tokens")])
def test_crop_refuses_what_it_cannot_mean(tokens: int, match: str) -> None:
    """Earlier versions of transformers took a positive number for what to keep."""
    cache, (key, value) = EncryptedCache(), states(20)
    for layer in range(2):
        cache.update(key, value, layer)
    with pytest.raises(errors.ArgumentError, match=match):
        cache.crop(tokens)
    assert not cache.erased
    for layer in range(2):
        assert torch.equal(contents(cache, layer)[0], key)


def test_a_window_is_cropped_while_the_past_is_recorded(windowed: Any) -> None:
    ours, plain = EncryptedCache(windowed), DynamicCache(config=windowed)
    for cache in (ours, plain):
        cache.activate_past_recording()
    assert ours.is_recording_past(0)
    for tokens, removed in ((9, 0), (4, 2), (4, 4), (1, 0), (6, 5)):
        for layer in range(2):
            new = states(tokens)
            found, wanted = ours.update(*new, layer), plain.update(*new, layer)
            assert torch.equal(opened(found[0]), wanted[0])
        for cache in (ours, plain):
            cache.crop(-removed)
        assert ours.get_seq_length() == plain.get_seq_length()


def test_a_window_that_has_moved_on_is_not_cropped(windowed: Any) -> None:
    """Whatever still lies in blocks: what is missing must not be hidden."""
    cache, (key, value) = EncryptedCache(windowed), states(400)
    for tokens in (slice(0, 390), slice(390, 391), slice(391, 392)):
        for layer in range(2):
            cache.update(key[:, :, tokens], value[:, :, tokens], layer)
    assert cache.layers[0].first_kept()[0] > 100
    with pytest.raises(errors.ArgumentError, match="activate_past_recording"):
        cache.crop(-350)
    assert cache.get_seq_length() == 392 and cache.get_seq_length(1) == 392
    assert torch.equal(contents(cache, 1)[0], key[:, :, :392])


def test_a_window_gives_back_what_nobody_sees(windowed: Any) -> None:
    cache = EncryptedCache(windowed)
    cache.update(*states(500), 0)
    for _ in range(200):
        cache.update(*states(1), 0)
    length, first = cache._tables.open().length(0, 0)
    block = cache._tables.open().block_tokens(0)
    assert length == 700 and 700 - 5 - 2 * block <= first <= 700 - 5


def test_a_crop_that_fails_halfway_erases(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EncryptedCache()
    for layer in range(2):
        cache.update(*states(5), layer)
    native = type(cache._tables.open())
    crop = native.crop

    def failing(self: Any, layer: int, *args: Any) -> None:
        if layer == 1:
            raise errors.OutOfMemoryError("no memory")
        crop(self, layer, *args)

    monkeypatch.setattr(native, "crop", failing)
    with pytest.raises(errors.OutOfMemoryError):
        cache.crop(-1)
    assert cache.erased
    with pytest.raises(errors.ClosedError, match="closed or erased"):
        cache.update(*states(1), 0)


# ---- sequences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_sequences_are_chosen_and_repeated(tokens: int) -> None:
    cache, plain = EncryptedCache(), DynamicCache()
    for layer in range(2):
        new = states(tokens, 3)
        cache.update(*new, layer)
        plain.update(*new, layer)
    for name, argument in (
        ("reorder_cache", torch.tensor([2, 0, 0])),
        ("batch_repeat_interleave", 2),
        ("batch_select_indices", torch.tensor([4, 1, 5])),
        ("batch_select_indices", torch.tensor([True, False, True])),
        ("reorder_cache", torch.tensor([1, 1])),
    ):
        getattr(cache, name)(argument)
        getattr(plain, name)(argument)
        for layer in range(2):
            new = states(2, plain.layers[layer].keys.shape[0])
            found, wanted = cache.update(*new, layer), plain.update(*new, layer)
            assert torch.equal(opened(found[0]), wanted[0])
            assert torch.equal(opened(found[1]), wanted[1])
    assert cache.batch_size == 2


def test_another_number_of_sequences_is_refused() -> None:
    """A cache given to beams or to several inputs is not expanded by transformers."""
    cache = EncryptedCache()
    cache.update(*states(3, 1), 0)
    with pytest.raises(errors.ArgumentError, match="holds 1 sequences, and the input has 4"):
        cache.update(*states(1, 4), 0)
    cache.batch_repeat_interleave(4)
    cache.update(*states(1, 4), 0)
    assert cache.get_seq_length() == 4


@pytest.mark.parametrize(
    "copied", [lambda cache: cache.fork(), copy.deepcopy], ids=["fork", "deep"]
)
def test_a_fork_shares_and_does_not_mix(copied: Any, windowed: Any) -> None:
    """transformers' own recipe for prefixes is copy.deepcopy(cache)."""
    first = EncryptedCache(windowed)
    begun = [states(20), states(20)]
    for layer, new in enumerate(begun):
        first.update(*new, layer)
    second = copied(first)
    one, other = states(3), states(3)
    found = first.update(*one, 1)[0], second.update(*other, 1)[0]
    assert torch.equal(opened(found[0]), torch.cat((begun[1][0], one[0]), 2))
    assert torch.equal(opened(found[1]), torch.cat((begun[1][0], other[0]), 2))
    second.crop(0)
    assert first.get_seq_length() == second.get_seq_length() == 20


def test_a_fork_of_a_cache_without_a_config_grows() -> None:
    first = EncryptedCache()
    first.update(*states(2), 0)
    second = first.fork()
    second.update(*states(2), 1)
    assert len(first) == 1 and len(second) == 2


def test_what_ends_a_fork() -> None:
    first = EncryptedCache()
    begun = states(5)
    first.update(*begun, 0)
    for end in (lambda cache: cache.reset(), lambda cache: cache.close()):
        second = first.fork()
        second.update(*states(1), 0)
        end(second)
    with first.fork() as third:
        assert third.get_seq_length() == 5
    with pytest.raises(errors.ClosedError, match="closed or erased"):
        third.update(*states(1), 0)
    assert torch.equal(contents(first)[0], begun[0])


def test_erase_ends_the_forks_too() -> None:
    first = EncryptedCache()
    first.update(*states(5), 0)
    second = first.fork()
    second.erase()
    with pytest.raises(errors.ClosedError):
        first.update(*states(1), 0)


# ---- ends ----------------------------------------------------------------------------------------


def test_erase_and_reset() -> None:
    cache, (key, value) = EncryptedCache(), states(5)
    cache.update(key, value, 0)
    handle, _ = cache.update(*states(1), 0)
    cache.reset()
    assert cache.get_seq_length() == 0 and not cache.erased
    with pytest.raises(errors.ClosedError):
        handle.sum()
    cache.update(*states(2, 3, 1, (4, 4)), 0)  # of another form, since nothing is left
    assert cache.get_seq_length() == 2
    cache.erase()
    cache.erase()
    assert cache.erased and cache.get_seq_length() == 0
    with pytest.raises(errors.ClosedError, match="make a new one"):
        cache.update(key, value, 0)
    with EncryptedCache() as other:
        other.update(key, value, 0)
        native = other._tables.open()
    assert other.erased and native.erased


def test_the_key_goes_with_the_cache() -> None:
    gc.collect()
    before = lib.ccmem_secret_slots()
    for end in (EncryptedCache.reset, EncryptedCache.close, EncryptedCache.erase, None):
        cache = EncryptedCache()
        cache.update(*states(5), 0)
        fork = cache.fork()
        assert lib.ccmem_secret_slots() == before + 1
        del fork
        if end is None:
            del cache
        else:
            end(cache)
        assert lib.ccmem_secret_slots() == before


def test_the_key_given_must_be_open(key: Key) -> None:
    cache = EncryptedCache(key=key)
    cache.update(*states(2), 0)
    other = Key.generate()
    waiting = EncryptedCache(key=other)
    other.close()
    with pytest.raises(errors.ClosedError):
        waiting.update(*states(2), 0)
    with pytest.raises(errors.ClosedError):
        EncryptedCache(key=other)
    with pytest.raises(errors.ArgumentTypeError, match=r"must be a pyccmem\.Key, not bytes"):
        EncryptedCache(key=bytes(32))  # type: ignore[arg-type]


# ---- what is refused -----------------------------------------------------------------------------


def test_keys_and_values_are_not_exposed() -> None:
    cache = EncryptedCache()
    key, _ = cache.update(*states(5), 0)
    layer = cache.layers[0]
    for look in (lambda: layer.keys, lambda: layer.values, lambda: hasattr(layer, "keys")):
        with pytest.raises(errors.ArgumentError, match="exposes no keys and values"):
            look()
    with pytest.raises(errors.ArgumentTypeError, match="cannot be iterated"):
        list(cache)
    for copying in (
        lambda: pickle.dumps(cache),
        lambda: torch.save(cache, io.BytesIO()),
        lambda: copy.copy(cache),
        lambda: pickle.dumps(key),
        lambda: copy.deepcopy(key),
    ):
        with pytest.raises(errors.NotPicklableError):
            copying()
    for moving in (layer.offload, layer.prefetch, lambda: cache.offload(0)):
        with pytest.raises(errors.ArgumentError, match="not offloaded"):
            moving()


def test_export_is_refused() -> None:
    """torch.export would take keys and values into its program."""
    model = tiny_models.decoder("llama")
    cache = EncryptedCache(model.config)
    with pytest.raises(Exception, match=r"EncryptedCache|Deferred|Handle"):
        torch.export.export(
            model, (), {"input_ids": tiny_models.prompt(1, 4), "cache": cache}, strict=False
        )


def test_training_is_refused() -> None:
    """It has no gradient, and gradient checkpointing would append everything twice."""
    key, value = states(3)
    key.requires_grad_()
    cache = EncryptedCache()
    with pytest.raises(errors.ArgumentError, match="no_grad"):
        cache.update(key, value, 0)
    assert cache.get_seq_length() == 0
    with torch.no_grad():
        cache.update(key, value, 0)
    model = tiny_models.decoder("llama").train()
    with pytest.raises(errors.ArgumentError, match="no_grad"):
        model(tiny_models.prompt(1, 4), cache=EncryptedCache(), use_cache=True)
    model.activation_checkpointing_enable()
    unused = EncryptedCache()
    model(tiny_models.prompt(1, 4), cache=unused, use_cache=True).logits.sum().backward()
    assert unused.get_seq_length() == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda k, v: (k.double(), v.double()), "not of torch.float64"),
        (lambda k, v: (k[0], v[0]), "shape"),
        (lambda k, v: (k, v[:, :, :1]), "do not belong together"),
        (lambda k, v: (k, v.half()), "do not belong together"),
        (lambda k, v: (k.to("meta"), v.to("meta")), "has to be on the CPU"),
    ],
)
def test_what_cannot_be_kept_is_refused(change: Any, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):  # both of pyccmem.errors
        EncryptedCache().update(*change(*states(3)), 0)


def test_another_form_than_before_is_refused() -> None:
    cache = EncryptedCache()
    cache.update(*states(3), 0)
    for new in (states(1, heads=4), states(1, sizes=(8, 4)), [s.half() for s in states(1)]):
        with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError)):
            cache.update(*new, 0)
    assert contents(cache)[0].shape == (2, 2, 3, 8)


def test_hybrid_models_are_refused_unless_that_is_accepted() -> None:
    for name, kind in (("lfm2", "conv"), ("qwen3-next", "linear_attention")):
        config = tiny_models.hybrid(name).config
        with pytest.raises(errors.ArgumentError, match=f"of the kind {kind}: .* stay plain"):
            EncryptedCache(config)
        with pytest.warns(errors.PlainTensorsWarning):
            cache = EncryptedCache(config, plain_states=True)
        assert [type(layer).__name__ for layer in cache.layers] == [
            "LinearAttentionLayer",
            "EncryptedLayer",
        ]
        assert cache.get_seq_length() == 0  # of layer 1: layer 0 has none
        with pytest.raises(errors.ArgumentError, match="no fork"):
            cache.fork()
    with pytest.raises(errors.ArgumentError, match="kind hybrid, whose states"):
        EncryptedCache(tiny_models.hybrid("falcon-h1").config, plain_states=True)


def test_recurrent_states_are_overwritten_by_erase() -> None:
    model = tiny_models.hybrid("lfm2")
    with pytest.warns(errors.PlainTensorsWarning):
        cache = EncryptedCache(model.config, plain_states=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(tiny_models.prompt(1, 6), cache=cache, use_cache=True)
    with pytest.raises(errors.ArgumentError, match="recurrent states, which cannot be rolled back"):
        cache.crop(-1)
    assert cache.get_seq_length() == 6 and not cache.erased
    state = cache.layers[0].conv_states[0]
    assert bool(state.any())
    cache.erase()
    assert not bool(state.any())


def test_dtype_is_checked() -> None:
    with pytest.raises(errors.ArgumentError, match=r"None .* or 'int8'"):
        EncryptedCache(dtype="int4")


# ---- encoder-decoders ----------------------------------------------------------------------------


def test_cross_attention_has_no_window_and_is_not_cropped(windowed: Any) -> None:
    cache = EncryptedEncoderDecoderCache(windowed)
    assert isinstance(cache, EncoderDecoderCache)
    assert cache.cross_attention_cache.is_sliding == [False, False]
    assert cache.cross_attention_cache.layers[0].keys is None
    encoded = states(30)
    for layer in range(2):
        cache.cross_attention_cache.update(*encoded, layer)
        cache.self_attention_cache.update(*states(4), layer)
    cache.crop(-1)
    assert cache.get_seq_length() == 3
    assert torch.equal(opened(cache.cross_attention_cache.layers[1].keys), encoded[0])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(opened(cache.cross_attention_cache.layers[1].values), encoded[1].flip(0))
    other = cache.fork()
    cache.reset()
    assert cache.cross_attention_cache.get_seq_length() == 0
    del other
    for refused in (lambda: pickle.dumps(cache), lambda: list(cache)):
        with pytest.raises(errors.ArgumentTypeError):
            refused()
    with cache:
        pass
    assert cache.erased


# ---- the text ------------------------------------------------------------------------------------


def test_reuse_keeps_the_longest_common_beginning() -> None:
    ids = torch.arange(20).view(2, 10)
    cache = EncryptedCache()
    cache.update(*states(9), 0)
    assert not cache.remembers
    with pytest.raises(errors.ArgumentError, match="remember"):
        cache.reuse(ids)
    cache.remember(ids)
    other = ids.clone()
    other[1, 6] = 99
    fork = cache.fork()
    assert cache.reuse(torch.cat((ids, ids), 1)) == 9 and cache.get_seq_length() == 9
    assert cache.reuse(ids[:, :9]) == 8  # the last one has to be computed
    assert cache.reuse(other) == 6 and cache.get_seq_length() == 6
    assert cache.remembers and cache.reuse(ids) == 6
    assert cache.reuse(other[:, 1:]) == 0 and cache.get_seq_length() == 0
    assert fork.reuse(ids) == 9
    fork.reorder_cache(torch.tensor([0, 0]))
    assert not fork.remembers


def test_reuse_begins_anew_where_a_window_has_moved_on(windowed: Any) -> None:
    ids = torch.arange(400).view(1, 400)
    cache = EncryptedCache(windowed)
    for layer in range(2):
        cache.update(*states(390, 1), layer)
        cache.update(*states(1, 1), layer)
    cache.remember(ids)
    assert cache.reuse(ids[:, :30]) == 0 and cache.get_seq_length() == 0


def test_remember_wants_all_ids() -> None:
    cache = EncryptedCache()
    cache.update(*states(9), 0)
    with pytest.raises(errors.ArgumentError, match="9 tokens"):
        cache.remember(torch.arange(8).view(2, 4))


def test_the_text_is_encrypted() -> None:
    """No object holds the ids in the clear."""
    ids = torch.arange(1000, 1100).view(1, 100)
    cache = EncryptedCache()
    cache.update(*states(100, 1), 0)
    cache.remember(ids)
    sample = ids.numpy().tobytes()[:64]
    store = cache._ids
    assert store is not None and sample not in bytes(store._ids.buffer.ciphertext)
    assert pyccmem.transformers.EncryptedCache is EncryptedCache
