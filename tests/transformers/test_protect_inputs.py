# SPDX-License-Identifier: Apache-2.0
"""protect_inputs(): what a protected model does with caches, and how it becomes plain again."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import tiny_models
import torch
import transformers
from tiny_models import prompt
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import EncoderDecoderCache

import pyccmem.transformers.protect as protect_module
from pyccmem import Key, errors
from pyccmem.binding import lib
from pyccmem.core.kv_tables import KVTables
from pyccmem.torch import encrypt_module
from pyccmem.transformers import (
    EncryptedCache,
    EncryptedEncoderDecoderCache,
    protect_inputs,
    protected_inputs,
    unprotect_inputs,
)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The caches that protected models make for themselves."""
    found: list[Any] = []
    for kind in (EncryptedCache, EncryptedEncoderDecoderCache):

        def counted(*args: Any, kind: Any = kind, **kwargs: Any) -> Any:
            found.append(kind(*args, **kwargs))
            return found[-1]

        monkeypatch.setattr(protect_module, kind.__name__, counted)
    return found


def generate(model: Any, ids: Any, mask: Any = None, **options: Any) -> Any:
    torch.manual_seed(5)
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        **{"max_new_tokens": 5, "do_sample": False, **options},
    )


# ---- on and off ----------------------------------------------------------------------------------


def test_on_and_off() -> None:
    model = tiny_models.decoder("llama")
    kind, attributes = type(model), set(vars(model))
    assert protect_inputs(model) is model
    assert model.config._attn_implementation == "pyccmem"
    assert isinstance(model, kind) and type(model).__name__ == kind.__name__
    with pytest.raises(errors.ArgumentError, match="protected already"):
        protect_inputs(model)
    assert unprotect_inputs(model) is model
    assert type(model) is kind and set(vars(model)) == attributes
    assert model.config._attn_implementation == "sdpa"
    assert not model._forward_pre_hooks
    with pytest.raises(errors.ArgumentError, match="not protected"):
        unprotect_inputs(model)
    with pytest.raises(RuntimeError, match="stop"), protected_inputs(model):
        raise RuntimeError("stop")
    assert type(model) is kind
    assert isinstance(
        generate(model, prompt(1, 4), return_dict_in_generate=True).cache, DynamicCache
    )


def test_what_cannot_be_protected_is_refused() -> None:
    with pytest.raises(errors.ArgumentTypeError, match="PreTrainedModel, not Linear"):
        protect_inputs(torch.nn.Linear(2, 2))
    for name in ("mamba", "falcon-h1", "lfm2"):
        model = tiny_models.hybrid(name)
        kind = type(model)
        with pytest.raises(errors.ArgumentError):
            protect_inputs(model)
        assert type(model) is kind and model.config._attn_implementation != "pyccmem"
    config = transformers.XLNetConfig(vocab_size=67, d_model=32, n_layer=2, n_head=4, d_inner=48)
    with pytest.raises(errors.ArgumentError, match="form of its own"):
        protect_inputs(transformers.XLNetLMHeadModel(config))
    with pytest.raises(errors.ArgumentError, match="int8"):
        protect_inputs(tiny_models.decoder("llama"), dtype="float8")


def test_the_model_can_be_copied_and_not_pickled(key: Key) -> None:
    model = protect_inputs(tiny_models.decoder("llama"), key=key)
    ids = prompt(1, 5)
    wanted = generate(model, ids)
    other = copy.deepcopy(model)
    assert torch.equal(generate(other, ids), wanted)
    unprotect_inputs(other)
    assert type(other) is not type(model) and torch.equal(generate(other, ids), wanted)
    with pytest.raises((errors.NotPicklableError, pickle.PicklingError)):
        pickle.dumps(model)


def test_saved_as_what_it_was(tmp_path: Any) -> None:
    model = protect_inputs(tiny_models.decoder("llama"))
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert loaded.config._attn_implementation == "sdpa"


# ---- the cache of a call -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}],
    ids=["greedy", "beams", "sampled"],
)
def test_erased_at_the_end(made: list[Any], options: dict[str, Any]) -> None:
    with protected_inputs(tiny_models.decoder("llama")) as model:
        generate(model, prompt(2, 4), **options)
    assert len(made) == 2  # one to see whether it can be made
    assert all(cache.erased for cache in made[1:])
    with protected_inputs(tiny_models.encoder_decoder("t5")) as model:
        generate(model, prompt(2, 4), **options)
    assert type(made[-1]) is EncryptedEncoderDecoderCache and made[-1].erased


def test_erased_after_an_error(made: list[Any]) -> None:
    class Stop(transformers.StoppingCriteria):
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("stop")

    with protected_inputs(tiny_models.decoder("llama")) as model, pytest.raises(RuntimeError):
        generate(model, prompt(1, 4), stopping_criteria=[Stop()])
    assert len(made) == 2 and made[-1].erased


def test_not_erased_when_it_is_returned(made: list[Any]) -> None:
    with protected_inputs(tiny_models.decoder("llama")) as model:
        result = generate(model, prompt(1, 4), return_dict_in_generate=True)
        assert result.cache is made[-1] and not result.cache.erased
        again = generate(model, result.sequences, cache=result.cache)
        assert again.shape[1] == 14 and not result.cache.erased


def test_without_a_cache(made: list[Any]) -> None:
    model = tiny_models.decoder("llama")
    wanted = generate(model, prompt(1, 4), use_cache=False)
    with protected_inputs(model):
        found = generate(model, prompt(1, 4), use_cache=False)
    assert torch.equal(wanted, found) and len(made) == 1


def test_an_assistant_is_protected_too(made: list[Any]) -> None:
    draft = tiny_models.decoder("llama", num_hidden_layers=1)
    kind = type(draft)
    with protected_inputs(tiny_models.decoder("llama")) as model:
        generate(model, prompt(1, 6), assistant_model=draft)
    assert type(draft) is kind and draft.config._attn_implementation == "sdpa"
    caches = [cache for cache in made if cache.get_seq_length() or cache.erased]
    assert len({len(cache.layers) for cache in made}) == 2 and caches


@pytest.mark.parametrize("kind", ["static", "offloaded", "quantized"])
def test_plain_caches_are_refused(kind: str) -> None:
    model = protect_inputs(tiny_models.decoder("llama"))
    ids = prompt(1, 4)
    with pytest.raises(errors.ArgumentError, match="in the clear"):
        generate(model, ids, cache_implementation=kind)
    for cache in (
        DynamicCache(config=model.config),
        StaticCache(config=model.config, max_cache_len=20),
        EncoderDecoderCache(EncryptedCache(), DynamicCache()),
    ):
        with pytest.raises(errors.ArgumentError, match="in the clear"):
            generate(model, ids, cache=cache)
        with pytest.raises(errors.ArgumentError, match="in the clear"), torch.no_grad():
            model(ids, cache=cache)


def test_the_old_name_of_the_argument() -> None:
    model = tiny_models.decoder("llama")
    ids = prompt(1, 6)
    wanted = generate(model, ids)
    with protected_inputs(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = EncryptedCache(model.config)
        assert torch.equal(generate(model, ids, past_key_values=cache), wanted)
        assert cache.get_seq_length() == 10 and cache.remembers


def test_other_caches_of_a_call_are_encrypted_or_refused(made: list[Any]) -> None:
    """Guidance runs the model a second time without the prompt, with another cache."""
    model = tiny_models.decoder("llama")
    ids = prompt(1, 6)
    wanted = generate(model, ids, guidance_scale=1.5)
    with protected_inputs(model):
        assert torch.equal(generate(model, ids, guidance_scale=1.5), wanted)
        assert len(made) == 3 and wanted.shape[1] == 11
        with pytest.raises(errors.ArgumentError, match="use_mtp"):
            generate(model, ids, use_mtp=True)


# ---- calls of the model --------------------------------------------------------------------------


def test_calls_make_encrypted_caches() -> None:
    model = tiny_models.decoder("gemma3")
    ids = prompt(2, 9)
    with torch.no_grad():
        first = model(ids[:, :6])
        wanted = model(ids[:, 6:], cache=first.cache).logits
        with protected_inputs(model):
            first = model(ids[:, :6])
            assert type(first.cache) is EncryptedCache
            found = model(ids[:, 6:], cache=first.cache).logits
            assert model(ids, use_cache=False).cache is None
    assert float((wanted - found).abs().max()) <= 1e-5 * float(wanted.abs().max())
    with protected_inputs(model):
        # With gradients: no cache that nobody asked for, and none that could pass them on.
        assert model(ids).cache is None
        with pytest.raises(errors.ArgumentError, match="no_grad"):
            model(ids, use_cache=True)


def test_calls_of_encoder_decoders() -> None:
    model = tiny_models.encoder_decoder("bart")
    with torch.no_grad(), protected_inputs(model):
        result = model(prompt(1, 5), decoder_input_ids=prompt(1, 3))
        assert type(result.cache) is EncryptedEncoderDecoderCache


def test_an_encoder_alone() -> None:
    """There is no cache; its attention is over plain keys and values."""
    config = transformers.BertConfig(
        vocab_size=67,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    model = transformers.BertModel(config).eval()
    ids, mask = prompt(2, 7), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).last_hidden_state
        with protected_inputs(model):
            found = model(ids, attention_mask=mask).last_hidden_state
    seen = mask.bool()
    assert float((wanted - found)[seen].abs().max()) <= 1e-5


def test_output_attentions_is_refused() -> None:
    model = protect_inputs(tiny_models.decoder("llama"))
    with pytest.raises(errors.ArgumentError, match="eager"), torch.no_grad():
        model(prompt(1, 4), output_attentions=True)


# ---- caches that are kept ------------------------------------------------------------------------


def test_a_chat_of_several_turns() -> None:
    """Each turn gives the whole text. What is cached is used as far as it is of this text: the last
    token sampled never was cached, and a text that went through a tokenizer may differ."""
    model = tiny_models.decoder("llama")
    text = prompt(1, 9)
    with protected_inputs(model):
        cache = EncryptedCache(model.config)
        kept = []
        for change in (None, None, 12, 3, None):
            if change is not None:
                text = text.clone()
                text[0, change] = (text[0, change] + 1) % 60 + 3
            text = torch.cat((text, prompt(1, 3, int(text.shape[1]))), 1)
            common = cache._ids.common(text) if cache._ids is not None else 0
            sealed = calls(cache)
            after = generate(model, text, cache=cache)
            kept.append(common)
            # Only what is new was computed, and the last token's successor.
            assert calls(cache) - sealed == after.shape[1] - 1 - common
            with torch.no_grad():
                assert torch.equal(after, generate(model, text))
            text = after
    assert kept == [0, 16, 12, 3, 40]


def calls(cache: EncryptedCache) -> int:
    """Tokens that were ever appended to layer 0."""
    return getattr(cache, "appended", 0)


@pytest.fixture(autouse=True)
def count_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    update = EncryptedCache.update

    def counted(self: Any, key: Any, value: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if layer_idx == 0:
            self.appended = getattr(self, "appended", 0) + key.shape[2]
        return update(self, key, value, layer_idx, *args, **kwargs)

    monkeypatch.setattr(EncryptedCache, "update", counted)


def test_a_chat_with_drafts() -> None:
    """Drafts that were not accepted are neither in the cache nor in the text that it knows."""
    model = tiny_models.decoder("llama")
    text = prompt(1, 5).repeat(1, 3)
    with protected_inputs(model):
        cache = EncryptedCache(model.config)
        for _ in range(3):
            after = generate(model, text, cache=cache, prompt_lookup_num_tokens=4)
            assert torch.equal(after, generate(model, text))
            assert cache.remembers and cache.get_seq_length() == after.shape[1] - 1
            text = torch.cat((after, prompt(1, 2, 8)), 1)
        mask = torch.ones(1, cache.get_seq_length() + 2, dtype=torch.long)
        with pytest.raises(errors.ArgumentError, match="computes all of the text"):
            generate(model, prompt(1, 2, 8), mask, cache=cache, prompt_lookup_num_tokens=4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "pyccmem"])
def test_a_cache_without_protection(implementation: str) -> None:
    """For a model loaded with this implementation."""
    model = tiny_models.decoder("gemma3")
    ids = prompt(2, 7)
    wanted = generate(model, ids, num_beams=2)
    model.set_attn_implementation(implementation)
    with EncryptedCache(model.config) as cache, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", errors.OpenedCacheWarning)
        assert torch.equal(generate(model, ids, cache=cache, num_beams=2), wanted)
    kinds = [one for one in told if issubclass(one.category, errors.OpenedCacheWarning)]
    assert len(kinds) == (implementation != "pyccmem")


@pytest.mark.parametrize("name", ["gemma3", "deepseek-v3"])
def test_a_chat_with_windows(name: str) -> None:
    model = tiny_models.decoder(name)
    text = prompt(1, 30)
    with protected_inputs(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.OpenedCacheWarning)
        cache = EncryptedCache(model.config)
        for _ in range(3):
            text = torch.cat((text, prompt(1, 2, int(text.shape[1]))), 1)
            after = generate(model, text, cache=cache)
            assert torch.equal(after, generate(model, text))
            text = after
        text = text[:, :20]
        assert torch.equal(generate(model, text, cache=cache), generate(model, text))


def test_new_tokens_alone_with_a_mask_of_all() -> None:
    """transformers' other way to go on."""
    model = tiny_models.decoder("llama")
    text, new = prompt(1, 9), prompt(1, 3, 8)
    with protected_inputs(model):
        cache = EncryptedCache(model.config)
        text = generate(model, text, cache=cache)
        whole = torch.cat((text, new), 1)
        wanted = generate(model, whole)
        mask = torch.ones_like(whole)
        missing = whole[:, cache.get_seq_length() :]
        found = generate(model, missing, mask, cache=cache)
    assert torch.equal(found[:, missing.shape[1] :], wanted[:, whole.shape[1] :])


def test_a_mask_of_the_new_tokens_alone_is_refused_or_a_new_text() -> None:
    """Not an answer from somewhere in between."""
    model = tiny_models.decoder("llama")
    text, new = prompt(1, 9), prompt(1, 3, 8)
    with protected_inputs(model):
        cache = EncryptedCache(model.config)
        generate(model, text, cache=cache)
        assert torch.equal(generate(model, new, cache=cache), generate(model, new))
        with torch.no_grad():
            unknown = model(text).cache
        with pytest.raises(errors.ArgumentError, match="not known"):
            generate(model, new, cache=unknown)


def test_a_given_cache_is_expanded_for_beams_and_results() -> None:
    """transformers expands ids and masks, and not the cache."""
    model = tiny_models.decoder("llama")
    text = prompt(2, 9)
    for options in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        with protected_inputs(model):
            cache = EncryptedCache(model.config)
            longer = generate(model, text, cache=cache)
            wanted = generate(model, longer, **options)
            assert torch.equal(generate(model, longer, cache=cache, **options), wanted)
            assert cache.batch_size == 2 * max(options.values())
            if cache.remembers:  # another text, from its beginning
                generate(model, prompt(3, 40), cache=cache)
                assert cache.batch_size == 3
                continue
            with pytest.raises(errors.ArgumentError, match="use a cache of its own"):
                generate(model, prompt(3, 40), cache=cache)


def test_one_cache_for_all_inputs_of_a_pipeline() -> None:
    """The inputs come one after another, each with the cache that the one before has filled."""
    model = tiny_models.decoder("llama")
    pipe = pipeline_of(model)
    texts = ["w3 w4 w5 w6", "w3 w4 w7", "w9 w8 w7 w6 w5"]
    options = {"max_new_tokens": 4, "do_sample": False}
    wanted = pipe(texts, **options)
    with protected_inputs(model):
        assert pipe(texts, **options) == wanted
        assert pipe(texts, cache=EncryptedCache(model.config), **options) == wanted
        assert pipe(texts, batch_size=3, **options) == pipe(texts, **options)


def pipeline_of(model: Any) -> Any:
    """A pipeline with a tokenizer of words w0, w1, ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = Tokenizer(
        WordLevel({f"w{number}": number for number in range(tiny_models.VOCABULARY)}, "w1")
    )
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", padding_side="left"
    )
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)


def test_a_pipeline_keeps_nothing(made: list[Any]) -> None:
    model = tiny_models.decoder("llama")
    pipe = pipeline_of(model)
    with protected_inputs(model):
        pipe(["w3 w4", "w5 w6"], max_new_tokens=3)
    assert len(made) == 3 and all(cache.erased for cache in made[1:])


def test_prefix_of_several_conversations() -> None:
    """transformers' recipe: one prompt, a copy of its cache for each question."""
    model = tiny_models.decoder("llama")
    system = prompt(1, 12)
    with protected_inputs(model):
        cache = EncryptedCache(model.config)
        with torch.no_grad():
            model(system, cache=cache)
        for seed in (1, 2):
            question = torch.cat((system, prompt(1, 4, seed)), 1)
            found = generate(model, question, cache=copy.deepcopy(cache))
            assert torch.equal(found, generate(model, question))
        assert cache.get_seq_length() == 12


# ---- models that change their mind ---------------------------------------------------------------


def test_long_rope_erases_what_it_discards(
    made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past a length Phi-3 rotates otherwise, and drops its cache: what it makes anew must not be
    plain, and the old one not stay."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 12,
    }
    model = tiny_models.decoder("phi3", original_max_position_embeddings=12, rope_parameters=rope)
    closed = []
    close = KVTables.close

    def counted(self: Any) -> None:
        closed.append((self.length(0, 0)[0], lib.ccmem_secret_slots()))
        close(self)

    ids = prompt(1, 8)
    wanted = generate(model, ids, max_new_tokens=9)
    before = lib.ccmem_secret_slots()
    monkeypatch.setattr(KVTables, "close", counted)
    with protected_inputs(model):
        assert torch.equal(generate(model, ids, max_new_tokens=9), wanted)
    # Closed with its key, before there is another one; the last one was erased.
    assert closed == [(12, before + 1), (16, before)]
    assert lib.ccmem_secret_slots() == before
    assert len(made) == 2 and made[-1].erased


# ---- torch.compile -------------------------------------------------------------------------------


def test_the_rest_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention layer: compiled before and behind the cache, which the compiler does not see."""
    check_compiled(one_layer=True, monkeypatch=monkeypatch)


@pytest.mark.full
def test_the_rest_of_a_model_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiled(one_layer=False, monkeypatch=monkeypatch)


def check_compiled(*, one_layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    model = tiny_models.decoder("llama", num_hidden_layers=1)
    ids = prompt(1, 6)
    wanted = generate(model, ids)
    graphs: list[Any] = []
    attended = []
    attend = KVTables.attend

    def counted(self: Any, what: Any) -> None:
        attended.append(what.rows)
        attend(self, what)

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(KVTables, "attend", counted)
    compiled = model.model.layers[0].self_attn if one_layer else model
    with protected_inputs(model):
        compiled.forward = torch.compile(compiled.forward, backend=backend)
        try:
            assert torch.equal(generate(model, ids), wanted)
            known = len(graphs)
            assert known > 1 and attended == [6, 1, 1, 1, 1]
            assert torch.equal(generate(model, ids), wanted)
            assert len(graphs) == known
        finally:
            del compiled.forward
    nodes = [node for graph in graphs for node in graph.graph.nodes if node.op != "placeholder"]
    targets = {str(node.target) for node in nodes}
    assert any("linear" in target for target in targets)
    assert not any("softmax" in target or "attention" in target for target in targets)
    torch._dynamo.reset()


def test_the_whole_of_a_model_as_one_graph_is_refused() -> None:
    """By torch, in our words. What has no cache in it can be one graph."""
    torch._dynamo.reset()
    model = tiny_models.decoder("llama", num_hidden_layers=1)
    ids = prompt(1, 6)
    wanted = generate(model, ids)
    with protected_inputs(model):
        for part in (model, model.model.layers[0].self_attn):
            part.forward = torch.compile(part.forward, backend="eager", fullgraph=True)
            with pytest.raises(torch._dynamo.exc.Unsupported, match="leave fullgraph=True out"):
                generate(model, ids)
            del part.forward
        part = model.model.layers[0].mlp
        part.forward = torch.compile(part.forward, backend="eager", fullgraph=True)
        assert torch.equal(generate(model, ids), wanted)
        del part.forward
    torch._dynamo.reset()


# ---- together with other things ------------------------------------------------------------------


def test_prefill_in_chunks_and_streaming() -> None:
    class Streamer(transformers.generation.BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: Any) -> None:
            self.ids += value.reshape(-1).tolist()

        def end(self) -> None:
            self.ids.append(-1)

    model = tiny_models.decoder("gemma3")
    ids = prompt(1, 17)
    wanted = generate(model, ids)
    with protected_inputs(model):
        streamer = Streamer()
        found = generate(model, ids, prefill_chunk_size=4, streamer=streamer)
    assert torch.equal(found, wanted)
    assert streamer.ids == [*wanted[0].tolist(), -1]


def test_encrypted_weights_and_inputs(key: Key) -> None:
    model = tiny_models.decoder("llama")
    wanted = generate(model, prompt(2, 6), num_beams=2)
    model = encrypt_module(model, key=key)
    with protected_inputs(model):
        assert torch.equal(generate(model, prompt(2, 6), num_beams=2), wanted)


@pytest.mark.parametrize("name", ["gemma3", "t5"])
def test_wiped_activations(name: str) -> None:
    model = (tiny_models.encoder_decoder if name == "t5" else tiny_models.decoder)(name)
    wanted = generate(model, prompt(2, 6), num_beams=2)
    with protected_inputs(model, activations="wiped"):
        assert torch.equal(generate(model, prompt(2, 6), num_beams=2), wanted)
        with torch.no_grad():
            cache = (
                model(prompt(1, 4), decoder_input_ids=prompt(1, 4)).cache
                if name == "t5"
                else (model(prompt(1, 4)).cache)
            )
    parts = [cache] if name != "t5" else [cache.self_attention_cache, cache.cross_attention_cache]
    assert all(part._tables.wipe for part in parts)


def test_inference_mode() -> None:
    model = tiny_models.decoder("falcon")
    ids = prompt(1, 6)
    wanted = generate(model, ids)
    with protected_inputs(model), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.OpenedCacheWarning)
        assert torch.equal(generate(model, ids), wanted)
        model(ids)


def test_conversations_in_threads() -> None:
    """One model, and a cache for each of eight."""
    model = tiny_models.decoder("gemma3")
    texts = [prompt(1, 6 + number, number) for number in range(8)]
    wanted = [generate(model, text) for text in texts]
    with protected_inputs(model), ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert all(map(torch.equal, pool.map(partial(generate, model), texts), wanted))
        caches = [EncryptedCache(model.config) for _ in texts]

        def turn(number: int) -> bool:
            found = generate(model, texts[number], cache=caches[number])
            return torch.equal(found, wanted[number])

        for _ in range(2):
            assert all(pool.map(turn, range(8)))


def test_a_fork_of_the_process_has_no_key() -> None:
    model = tiny_models.decoder("llama")
    with protected_inputs(model):
        result = generate(model, prompt(1, 6), return_dict_in_generate=True)
        child = os.fork()
        if not child:
            status = 1
            try:
                with torch.no_grad():
                    model(prompt(1, 1), cache=result.cache)
            except errors.ForkError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_earlier_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives a cache to its models under another name."""
    monkeypatch.setattr(transformers.generation.utils, "ALL_CACHE_NAMES", ["past_key_values"])
    with pytest.raises(errors.MissingPackageError, match=r"5\.24"):
        protect_inputs(tiny_models.decoder("llama"))
