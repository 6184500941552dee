# SPDX-License-Identifier: Apache-2.0
"""The attention "pyccmem" against one in float64, and its masks against those of transformers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import tiny_models
import torch
from torch import nn
from transformers import DynamicCache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    or_masks,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pyccmem import errors
from pyccmem.binding import wiped
from pyccmem.transformers import EncryptedCache, protected_inputs
from pyccmem.transformers.attention import NAME, attention
from pyccmem.transformers.masks import Mask, mask_for

SIZE = 16


class Module(nn.Module):
    """What a model's attention is to the function."""

    is_causal = True


class Case:
    """Random queries, keys and values, the keys and values in a cache."""

    def __init__(
        self,
        rows: int,
        tokens: int,
        *,
        sequences: int = 2,
        heads: int = 2,
        group: int = 2,
        cache: EncryptedCache | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(rows * 100 + tokens)
        self.query = torch.randn(
            sequences, rows, heads * group, SIZE, generator=generator
        ).transpose(1, 2)
        self.key, self.value = (
            torch.randn(sequences, heads, tokens, size, generator=generator).to(dtype)
            for size in (SIZE, 12)
        )
        self.query = self.query.to(dtype)
        self.cache = EncryptedCache() if cache is None else cache
        before = tokens - rows if tokens > rows else 0
        if before:
            self.cache.update(self.key[:, :, :before], self.value[:, :, :before], 0)
        self.handles = self.cache.update(self.key[:, :, before:], self.value[:, :, before:], 0)

    def ours(self, mask: Any = None, **options: Any) -> torch.Tensor:
        return attention(Module(), self.query, *self.handles, mask, **options)[0]

    def plain(self, mask: Any = None, **options: Any) -> torch.Tensor:
        """The function over plain keys and values."""
        return attention(Module(), self.query, self.key, self.value, mask, **options)[0]

    def wanted(
        self,
        seen: Any = True,
        *,
        added: Any = None,
        scale: float = SIZE**-0.5,
        softcap: float = 0.0,
        sinks: Any = None,
    ) -> torch.Tensor:
        """By hand, in float64; `seen` is broadcast to (sequences, heads, rows, tokens)."""
        group = self.query.shape[1] // self.key.shape[1]
        key, value = (one.double().repeat_interleave(group, 1) for one in (self.key, self.value))
        scores = self.query.double() @ key.transpose(2, 3) * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if added is not None:
            scores = scores + added
        scores = scores.masked_fill(~torch.as_tensor(seen).expand_as(scores), -torch.inf)
        if sinks is not None:
            extra = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, extra), 3)
        weights = torch.nan_to_num(torch.softmax(scores, 3))[..., : key.shape[2]]
        return (weights @ value).transpose(1, 2)

    def causal(self, window: int = 0) -> torch.Tensor:
        """Lower right."""
        rows, tokens = self.query.shape[2], self.key.shape[2]
        position = torch.arange(tokens - rows, tokens)[:, None]
        seen = torch.arange(tokens) <= position
        return seen & (torch.arange(tokens) > position - window) if window else seen


def assert_same(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 3e-6) -> None:
    assert found.shape == wanted.shape and found.is_contiguous()
    assert float((found.double() - wanted).abs().max()) <= tolerance * max(
        float(wanted.abs().max()), 1.0
    )


# ---- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 33), (3, 40), (6, 6), (17, 50)])
@pytest.mark.parametrize("group", [1, 3, 7])
def test_causal_is_lower_right(rows: int, tokens: int, group: int) -> None:
    """With fewer rows than tokens the first row sees more than one token."""
    case = Case(rows, tokens, group=group)
    assert_same(case.ours(), case.wanted(case.causal()))
    assert_same(case.plain(), case.wanted(case.causal()))
    assert_same(case.ours(is_causal=False), case.wanted())
    assert_same(case.plain(is_causal=False), case.wanted())


@pytest.mark.parametrize("way", ["ours", "plain"])
def test_options(way: str) -> None:
    case = Case(5, 30)
    compute: Callable[..., torch.Tensor] = getattr(case, way)
    sinks = torch.tensor([0.5, -1.0, 3.0, 0.0])
    seen = case.causal()
    assert_same(compute(scaling=0.3), case.wanted(seen, scale=0.3))
    assert_same(compute(softcap=0.7), case.wanted(seen, softcap=0.7))
    assert_same(compute(s_aux=sinks), case.wanted(seen, sinks=sinks))
    assert_same(compute(sinks=sinks), case.wanted(seen, sinks=sinks))
    assert_same(compute(sliding_window=4), case.wanted(case.causal(4)))
    assert_same(
        compute(softcap=0.7, s_aux=sinks, sliding_window=4),
        case.wanted(case.causal(4), softcap=0.7, sinks=sinks),
    )


@pytest.mark.parametrize("way", ["ours", "plain"])
@pytest.mark.parametrize("shape", list(itertools.product((1, 2), (1, 4))), ids=str)
def test_matrices(way: str, shape: tuple[int, int]) -> None:
    """A mask for all or for each sequence, for all or for each head, boolean or added; it says all,
    so that neither the causal rule nor a window comes on top. A softcap comes before it."""
    case = Case(5, 30)
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(*shape, 5, 30, generator=generator) > 0.4
    seen[..., 0] = True
    added = torch.randn(*shape, 5, 30, generator=generator)
    compute: Callable[..., torch.Tensor] = getattr(case, way)
    assert_same(compute(seen), case.wanted(seen))
    assert_same(compute(seen, sliding_window=2), case.wanted(seen))
    assert_same(compute(added), case.wanted(added=added))
    lowest = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    assert_same(compute(lowest, softcap=0.7), case.wanted(seen, softcap=0.7))
    assert_same(compute(seen[..., :1, :].expand(*shape, 5, 30)), case.wanted(seen[..., :1, :]))


@pytest.mark.parametrize("way", ["ours", "plain"])
def test_a_bias_of_positions(way: str) -> None:
    """As T5 has it: on top of a mask, or of the causal rule."""
    case = Case(5, 30)
    bias = torch.randn(1, 4, 5, 30, generator=torch.Generator().manual_seed(2))
    compute: Callable[..., torch.Tensor] = getattr(case, way)
    assert_same(compute(position_bias=bias), case.wanted(case.causal(), added=bias))
    assert_same(compute(position_bias=bias, is_causal=False), case.wanted(added=bias))
    seen = torch.rand(2, 1, 5, 30, generator=torch.Generator().manual_seed(3)) > 0.4
    assert_same(compute(seen, position_bias=bias), case.wanted(seen, added=bias))
    more = torch.where(seen, 0.0, -1e9)
    assert_same(compute(more, position_bias=bias), case.wanted(seen, added=bias))


def test_a_row_that_sees_nothing_is_zero() -> None:
    case = Case(3, 9)
    seen = torch.zeros(1, 1, 3, 9, dtype=torch.bool)
    seen[..., 1, 4] = True
    for found in (case.ours(seen), case.plain(seen, softcap=1e6)):
        assert_same(found, case.wanted(seen), 1e-4)
        assert not bool(found[:, 0].any()) and bool(found[:, 1].any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scores_do_not_overflow(dtype: torch.dtype) -> None:
    """Scores of some models are beyond what float16 can say."""
    case = Case(2, 20, dtype=dtype)
    case.query = case.query * 3000
    found, wanted = case.ours(), case.wanted(case.causal())
    assert found.dtype == dtype and bool(found.isfinite().all())
    assert_same(found, wanted, 2e-2)


def test_wiped_results() -> None:
    before = wiped.stats()["plain_blocks"]
    case = Case(3, 20, cache=EncryptedCache(activations="wiped"))
    found = case.ours()
    assert wiped.stats()["plain_blocks"] == before + 1
    assert_same(found, case.wanted(case.causal()))
    assert torch.equal(found, Case(3, 20).ours())
    del found
    assert wiped.stats()["plain_blocks"] == before
    assert case.cache.fork()._tables.wipe
    with pytest.raises(errors.ArgumentError, match="'wiped'"):
        EncryptedCache(activations="burnt")


def test_queries_in_any_order() -> None:
    case = Case(4, 12)
    wanted = case.ours()
    for other in (
        case.query.contiguous(),
        torch.cat((case.query, case.query), 3)[..., :SIZE],
        case.query.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    ):
        case.query = other
        assert torch.equal(case.ours(), wanted)


@pytest.mark.parametrize("mask", [None, "matrix"])
def test_a_window_of_the_layer(mask: Any) -> None:
    """After blocks have been given back."""
    config = tiny_models.decoder("gemma3").config  # a window of 5
    cache = EncryptedCache(config)
    case = Case(3, 3, cache=cache)
    generator = torch.Generator().manual_seed(9)
    for tokens in (1,) * 70 + (3,):
        key, value = (torch.randn(2, 2, tokens, size, generator=generator) for size in (SIZE, 12))
        case.key, case.value = torch.cat((case.key, key), 2), torch.cat((case.value, value), 2)
        case.handles = cache.update(key, value, 0)
    assert cache.layers[0].first_kept()[0] > 0
    wanted = case.wanted(case.causal(5))
    width = case.handles[0].shape[2]
    assert width == 7
    given = None if mask is None else case.causal(5)[None, None, :, -width:]
    assert_same(case.ours(given), wanted)


# ---- what it refuses -----------------------------------------------------------------------------


def test_unknown_keywords_are_refused() -> None:
    """A name of one's own is not asked whether it can do what a model needs."""
    case = Case(2, 9)
    for compute in (case.ours, case.plain):
        for name, value in (
            ("indices", torch.zeros(1)),
            ("cu_seq_lens_q", torch.zeros(3)),
            ("block_indices", 3),
            ("head_mask", torch.ones(4)),
            ("newly_invented", 1.5),
        ):
            with pytest.raises(errors.ArgumentError, match=f"{name}=.*eager"):
                compute(**{name: value})
        with pytest.raises(errors.ArgumentError, match="keeps no weights"):
            compute(output_attentions=True)
        with pytest.raises(errors.ArgumentError, match="not both"):
            compute(sinks=torch.ones(4), s_aux=torch.ones(4))
        compute(indices=None, output_attentions=False, position_ids=torch.zeros(1), use_cache=True)
    with pytest.raises(errors.ArgumentError, match=r"model\.eval"):
        case.ours(dropout=0.1)
    with pytest.raises(errors.ArgumentError, match="9 tokens"):
        case.ours(torch.ones(1, 1, 2, 8, dtype=torch.bool))


def test_a_model_with_sparse_indices_is_refused() -> None:
    """DeepSeek V3.2 chooses tokens by an index of its own, whose keys would stay plain."""
    config = tiny_models.decoder("deepseek-v3").config
    config.layer_types = ["indexed_attention"] * 2
    with pytest.raises(errors.ArgumentError, match="indexed_attention"):
        EncryptedCache(config)


def test_damage_gives_nothing() -> None:
    case = Case(2, 40)
    native = case.cache._tables.open()
    if not hasattr(native, "places"):
        pytest.skip("plain tables have no tags")
    import ctypes

    place = native.places(0, 1)[0]
    ctypes.c_uint8.from_address(place.data).value ^= 1
    with pytest.raises(errors.IntegrityError):
        case.ours()
    with pytest.raises(errors.IntegrityError):
        case.handles[place.which % 2].sum()


# ---- masks ---------------------------------------------------------------------------------------


def test_both_interfaces_know_one_name() -> None:
    """Without a mask function of the same name, a model gets no mask, and sees padding and what
    comes later."""
    assert NAME == "pyccmem"
    assert ALL_ATTENTION_FUNCTIONS[NAME] is attention
    assert ALL_MASK_ATTENTION_FUNCTIONS[NAME] is mask_for


PADDINGS = {
    "none": None,
    "ones": [[1] * 12, [1] * 12],
    "left": [[1] * 12, [0] * 5 + [1] * 7],
    "right": [[1] * 9 + [0] * 3, [1] * 12],
    "both": [[0, 0] + [1] * 8 + [0, 0], [0] + [1] * 11],
    "holes": [[1] * 12, [1, 1, 0, 0] + [1] * 8],
    "nothing": [[0] * 12, [1] * 12],
    "short": [[1] * 10, [0] + [1] * 9],
    "long": [[1] * 14, [0] * 3 + [1] * 11],
}
FUNCTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "causal": (causal_mask_function, {}),
    "bidirectional": (
        bidirectional_mask_function,
        {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True},
    ),
    "sliding": (sliding_window_causal_mask_function(4), {"local_size": 4}),
    "sliding-wide": (sliding_window_causal_mask_function(40), {"local_size": 40}),
    "sliding-one": (sliding_window_causal_mask_function(1), {"local_size": 1}),
    "chunked": (
        chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.long)),
        {"local_size": 4},
    ),
    "chunked-wide": (
        chunked_causal_mask_function(40, torch.zeros(2, dtype=torch.long)),
        {"local_size": 40},
    ),
    "sliding-bidirectional": (
        sliding_window_bidirectional_mask_function(4),
        {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True, "local_size": 4},
    ),
    "and": (
        and_masks(causal_mask_function, lambda b, h, q, k: k % 3 != 1),
        {"allow_is_causal_skip": False, "use_vmap": True},
    ),
    "or": (
        or_masks(causal_mask_function, lambda b, h, q, k: k < 3),
        {"allow_is_causal_skip": False, "use_vmap": True},
    ),
    "sliding-or": (
        or_masks(sliding_window_causal_mask_function(4), lambda b, h, q, k: k < 3),
        {"allow_is_causal_skip": False, "use_vmap": True, "local_size": 4},
    ),
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_masks_say_what_transformers_masks_say(padding: str, function: str) -> None:
    for rows in (12, 1, 3):
        check_mask(padding, function, rows, 12 - rows)


def check_mask(padding: str, function: str, rows: int, offset: int) -> None:
    """The mask looked at, and the attention with it, which does not look."""
    made, options = FUNCTIONS[function]
    given = PADDINGS[padding]
    mask_2d = None if given is None else torch.tensor(given, dtype=torch.bool)
    arguments: dict[str, Any] = {
        "batch_size": 2,
        "q_length": rows,
        "kv_length": 12,
        "q_offset": offset,
        "kv_offset": 0,
        "mask_function": made,
        "attention_mask": mask_2d,
    }
    exact = {**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    wanted = sdpa_mask(**arguments, **exact)
    found = mask_for(**arguments, **options)
    if found is not None:
        assert found.shape == wanted.shape and found.dtype == torch.bool
        assert torch.equal(found.clone(), wanted)
    case = Case(rows, 12)
    causal = "bidirectional" not in function
    assert_same(case.ours(found, is_causal=causal), case.wanted(wanted))
    assert_same(case.plain(found, is_causal=causal), case.wanted(wanted), 1e-5)


@pytest.mark.parametrize(
    ("function", "padding", "kind"),
    [
        ("causal", "none", type(None)),
        ("causal", "ones", type(None)),
        ("bidirectional", "ones", type(None)),
        ("sliding-wide", "none", type(None)),
        ("chunked-wide", "ones", type(None)),
        ("causal", "left", Mask),
        ("causal", "both", Mask),
        ("bidirectional", "right", Mask),
        ("sliding", "left", Mask),
        ("causal", "holes", torch.Tensor),
        ("chunked", "none", torch.Tensor),
        ("sliding-or", "none", torch.Tensor),
    ],
)
def test_no_matrix_where_a_few_numbers_do(function: str, padding: str, kind: type) -> None:
    made, options = FUNCTIONS[function]
    given = PADDINGS[padding]
    found = mask_for(
        batch_size=2,
        q_length=3,
        kv_length=12,
        q_offset=9,
        mask_function=made,
        attention_mask=None if given is None else torch.tensor(given, dtype=torch.bool),
        **options,
    )
    assert type(found) is kind


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("cached", [0, 3, 7])
@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_masks_of_a_model(layer: int, cached: int, rows: int, padded: bool) -> None:
    """By transformers' own functions, with a cache that has a window in layer 0."""
    config = tiny_models.decoder("gemma3").config
    embedded = torch.zeros(2, rows, 32)
    mask = torch.ones(2, cached + rows, dtype=torch.long)
    if padded:
        mask[1, :2] = 0
    create = (create_sliding_window_causal_mask, create_causal_mask)[layer]
    found = {}
    for name, cache in ((NAME, EncryptedCache(config)), ("eager", DynamicCache(config=config))):
        for number in range(2):
            if cached:
                cache.update(torch.ones(2, 2, cached, 8), torch.ones(2, 2, cached, 8), number)
        config._attn_implementation = name
        found[name] = create(config, embedded, mask, cache)
    wanted = found["eager"] == 0
    if found[NAME] is None:
        rows_of, tokens = wanted.shape[2:]
        position = torch.arange(tokens - rows_of, tokens)[:, None]
        assert torch.equal(wanted[0, 0], torch.arange(tokens) <= position)
        assert bool((wanted == wanted[0, 0]).all())
    else:
        assert torch.equal(found[NAME].clone(), wanted)


def test_bidirectional_masks_of_a_model() -> None:
    config = tiny_models.encoder_decoder("bart").config
    config._attn_implementation = NAME
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    found = create_bidirectional_mask(config, torch.zeros(2, 6, 32), mask)
    assert isinstance(found, Mask) and not found.causal
    assert torch.equal(found.clone(), mask.bool()[:, None, None].expand(2, 1, 6, 6))
    assert found.spans is not None
    assert np.array_equal(found.spans[1], np.array([6, 4], np.uint64))


def test_packed_sequences_without_a_cache() -> None:
    """Several texts in one sequence: transformers makes a matrix that keeps them apart."""
    model = tiny_models.decoder("llama")
    ids = tiny_models.prompt(1, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    with torch.no_grad():
        wanted = model(ids, position_ids=positions, use_cache=False).logits
        with protected_inputs(model):
            found = model(ids, position_ids=positions, use_cache=False).logits
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


# ---- a control -----------------------------------------------------------------------------------


def test_masks_that_are_wrong_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyccmem.transformers.masks as masks

    monkeypatch.setattr(masks, "_spans", lambda mask, tokens: (False, None))
    with pytest.raises(AssertionError):
        check_mask("left", "causal", 3, 9)
    monkeypatch.undo()
    monkeypatch.setattr(masks, "_sees", lambda function, row, token: True)
    with pytest.raises(AssertionError):
        check_mask("none", "chunked", 3, 9)
