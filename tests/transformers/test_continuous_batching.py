# SPDX-License-Identifier: Apache-2.0
"""Continuous batching of a protected model: the tokens are those of generate(), requests never see
each other, and each one's key ends with it."""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import secret_search
import tiny_models
import torch
import transformers
from support import child_environment, linux_only, not_sanitized
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig

import pyccmem.transformers.attention as attention_module
from pyccmem import errors
from pyccmem.binding import lib
from pyccmem.core.kv_tables import KVTables, Rows
from pyccmem.transformers import (
    EncryptedCache,
    protect_inputs,
    protected_inputs,
    unprotect_inputs,
)
from pyccmem.transformers.batch_cache import EncryptedPagedCache

#: What the paged cache of transformers is for, itself.
MODELS = [
    *("llama", "mistral", "qwen2", "qwen2-sliding", "qwen3", "gemma", "gemma2", "gemma3"),
    *("phi", "phi3", "gpt2", "gpt-j", "gpt-bigcode", "starcoder2", "olmo", "olmo2", "granite"),
    *("cohere", "cohere2", "exaone4", "gpt-oss", "mixtral", "qwen2-moe", "smollm3"),
]
QUICK = {"llama", "mistral", "qwen2-sliding", "gemma2", "gemma3", "gpt2", "gpt-oss"}
NEW = 7


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    gc.collect()  # caches that other tests of this process have left
    slots = lib.ccmem_secret_slots()
    yield
    assert lib.ccmem_secret_slots() == slots, "a request's key is still there"
    logger.setLevel(level)
    torch.set_num_threads(before)


def prompts(*lengths: int) -> list[list[int]]:
    return [tiny_models.prompt(1, length, seed)[0].tolist() for seed, length in enumerate(lengths)]


def config(**changes: Any) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(
        **{"page_size": 16, "num_blocks": 40, "max_batch_tokens": 64, **changes}
    )


def options(new: int = NEW, **changes: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": new, "do_sample": False, **changes})


def batch(
    model: Any, texts: list[list[int]], new: int = NEW, *, settings: Any = None, **changes: Any
) -> list[list[int]]:
    """The new tokens of each text."""
    found = model.generate_batch(
        texts,
        generation_config=options(new, **changes),
        continuous_batching_config=settings or config(),
    )
    assert not [one.error for one in found.values() if one.error]
    return [one.generated_tokens for one in found.values()]


def alone(model: Any, texts: list[list[int]], new: int = NEW) -> list[list[int]]:
    """The same of each text by generate(), one after another."""
    return [
        model.generate(
            torch.tensor([text]),
            attention_mask=torch.ones(1, len(text), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
        )[0, len(text) :].tolist()
        for text in texts
    ]


@pytest.fixture
def appended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were appended, a number for each call."""
    counts: list[int] = []
    append = KVTables.append

    def counted(self: Any, layer: int, k: Rows, v: Rows, tokens: int, **more: Any) -> None:
        counts.append(tokens)
        append(self, layer, k, v, tokens, **more)

    monkeypatch.setattr(KVTables, "append", counted)
    return counts


# ---- the same tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MODELS],
)
def test_tokens_are_those_of_generate(name: str, appended: list[int]) -> None:
    """Prompts of many lengths, in batches of 64 tokens: some are cut in two, some meet others that
    are at another token."""
    model = tiny_models.decoder(name)
    texts = prompts(3, 17, 40, 5, 60, 2, 33)
    wanted = alone(model, texts)
    with protected_inputs(model):
        assert batch(model, texts) == wanted
        assert sum(appended) == 2 * sum(len(text) + NEW - 1 for text in texts)
        assert alone(model, texts[:1]) == wanted[:1]
    assert batch(model, texts) == wanted  # of the plain model


@pytest.mark.parametrize("broken", ["mixed up", "seen by all", "no window"])
def test_an_attention_that_is_wrong_is_noticed(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.decoder("mistral")
    texts = prompts(17, 17, 9)
    wanted = alone(model, texts)
    attend = attention_module.attend_batch

    def wrong(query: Any, key: Any, value: Any, window: int, *others: Any) -> Any:
        runs = key.runs
        if broken == "no window":
            window, key.window = 1000, 1000
        elif broken == "mixed up" and len(runs) > 1:
            key.runs = value.runs = [
                run._replace(tables=other.tables)
                for run, other in zip(runs, [*runs[1:], runs[0]], strict=True)
            ]
        elif broken == "seen by all":
            key.runs = value.runs = [run._replace(tables=runs[0].tables) for run in runs]
        return attend(query, key, value, window, *others)

    monkeypatch.setattr(attention_module, "attend_batch", wrong)
    with protected_inputs(model):
        assert batch(model, texts) != wanted


def test_many_more_requests_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In four blocks of 16 tokens; some lose their place, and begin anew when there is one."""
    model = tiny_models.decoder("llama")
    texts = prompts(*(4 + 7 * number % 23 for number in range(24)))
    wanted = alone(model, texts, 20)
    lost: list[str] = []
    most: list[int] = []
    free, update = EncryptedPagedCache.free_blocks, EncryptedPagedCache.update

    def freed(self: Any, request_id: str, no_cache: bool = False) -> None:
        lost.extend([request_id] * no_cache)
        free(self, request_id, no_cache)

    def updated(self: Any, *args: Any, **more: Any) -> Any:
        result = update(self, *args, **more)
        most.append(self.stats()["requests"])
        return result

    monkeypatch.setattr(EncryptedPagedCache, "free_blocks", freed)
    monkeypatch.setattr(EncryptedPagedCache, "update", updated)
    settings = config(num_blocks=4, max_requests_per_batch=3, max_batch_tokens=24)
    with protected_inputs(model):
        assert batch(model, texts, 20, settings=settings) == wanted
    assert lost and max(most) <= 4


def test_several_answers_to_one_prompt(appended: list[int]) -> None:
    """Forks of one request: each token of the prompt but the last is sealed once."""
    model = tiny_models.decoder("llama")
    texts = prompts(21, 12)
    wanted = [tokens for tokens in alone(model, texts) for _ in range(3)]
    with protected_inputs(model):
        asked = {"num_return_sequences": 3, "do_sample": True}
        assert batch(model, texts, top_k=1, **asked) == wanted
        once = sum(len(text) - 1 for text in texts)
        assert sum(appended) == 2 * (once + 3 * 2 * NEW)
        sampled = batch(model, texts, **asked)
        assert len(sampled) == 6 and len({tuple(tokens) for tokens in sampled}) > 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = tiny_models.decoder("llama").to(dtype)
    texts = prompts(9, 23, 4)
    with protected_inputs(model):
        found, wanted = batch(model, texts), alone(model, texts)
    same = sum(
        a == b for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert same >= len(texts) * NEW * 0.6  # a rounded tie takes another way from there on


def test_int8_and_wiped_activations(appended: list[int]) -> None:
    model = tiny_models.decoder("gemma3")
    texts = prompts(9, 23, 4)
    wanted = alone(model, texts)
    with protected_inputs(model, dtype="int8", activations="wiped"):
        found = batch(model, texts)
    assert appended and sum(map(len, found)) == len(texts) * NEW
    assert sum(x[0] == y[0] for x, y in zip(found, wanted, strict=True)) >= 2


@pytest.mark.parametrize("scheduler", ["fifo", "prefill_first"])
def test_schedulers_and_what_else_there_is_to_ask_for(scheduler: str) -> None:
    model = tiny_models.decoder("qwen2")
    texts = prompts(9, 23, 4)
    asked = {"settings": config(scheduler_type=scheduler), "repetition_penalty": 1.5}
    wanted = batch(model, texts, **asked)
    with protected_inputs(model):
        assert batch(model, texts, **asked) == wanted
        found = model.generate_batch(
            texts,
            generation_config=options(),
            continuous_batching_config=config(return_logprobs=True),
        )
    assert all(len(one.logprobs) == NEW for one in found.values())


@pytest.mark.full
def test_compiled() -> None:
    """Compiled, transformers pads its batches."""
    model = tiny_models.decoder("llama")
    texts = prompts(9, 23)
    wanted = alone(model, texts)
    settings = config(varlen_compile_config=CompileConfig(backend="eager", mode=None))
    with protected_inputs(model):
        assert batch(model, texts, settings=settings) == wanted
    torch._dynamo.reset()


def test_generate_with_a_paged_cache() -> None:
    """The form that generate() has for it, with an axis in front."""
    model = tiny_models.decoder("llama")
    ids = tiny_models.prompt(3, 6)
    asked = {"max_new_tokens": NEW, "do_sample": False}
    mask = torch.ones_like(ids)
    wanted = model.generate(ids, attention_mask=mask, **asked)
    asked["continuous_batching_config"] = config()
    with protected_inputs(model):
        found = model.generate(ids, cache_implementation="paged", **asked)
        with pytest.raises(errors.ArgumentError, match="a cache of its own"):
            model.generate(
                ids, cache_implementation="paged", cache=EncryptedCache(model.config), **asked
            )
    assert torch.equal(found, wanted[None])


# ---- what is shared ------------------------------------------------------------------------------


def alike(count: int) -> list[list[int]]:
    """Prompts that begin with the same 40 tokens; the first of them is the longest."""
    first = tiny_models.prompt(1, 40, 50)[0].tolist()
    return [
        [*first, *tiny_models.prompt(1, 30 if not seed else 5, seed)[0].tolist()]
        for seed in range(count)
    ]


@pytest.mark.parametrize("sharing", [True, False])
def test_a_beginning_is_shared_within_a_call(sharing: bool, appended: list[int]) -> None:
    model = tiny_models.decoder("llama")
    texts = alike(6)
    wanted = alone(model, texts)
    every = 2 * sum(len(text) + NEW - 1 for text in texts)
    settings = config(max_requests_per_batch=2, allow_block_sharing=sharing)
    with protected_inputs(model):
        assert batch(model, texts, settings=settings) == wanted
    assert (sum(appended) < every) == sharing


@contextmanager
def manager_of(model: Any, **changes: Any) -> Iterator[Any]:
    with model.continuous_batching_context_manager(
        generation_config=options(**changes), continuous_batching_config=config()
    ) as manager:
        yield manager


def results(manager: Any, names: list[str]) -> list[list[int]]:
    found = {}
    while len(found) < len(names):
        one = manager.get_result(timeout=20)
        assert one is not None
        if one.is_finished():
            found[one.request_id] = one.generated_tokens
    return [found[name] for name in names]


def test_nothing_is_shared_between_requests_of_a_manager(appended: list[int]) -> None:
    """They may be of several tenants."""
    model = tiny_models.decoder("llama")
    texts = alike(6)
    wanted = alone(model, texts)
    with protected_inputs(model), manager_of(model) as manager:
        assert results(manager, manager.add_requests(texts, max_new_tokens=NEW)) == wanted
    assert sum(appended) == 2 * sum(len(text) + NEW - 1 for text in texts)


def test_nothing_is_kept_for_the_next_call(appended: list[int]) -> None:
    model = tiny_models.decoder("llama")
    texts = alike(1)
    wanted = alone(model, texts)
    slots = lib.ccmem_secret_slots()
    with protected_inputs(model):
        for call in range(2):
            found = model.generate_batch(
                texts,
                generation_config=options(),
                continuous_batching_config=config(),
                persistent_manager=True,
            )
            assert [one.generated_tokens for one in found.values()] == wanted
            assert sum(appended) == (call + 1) * 2 * (len(texts[0]) + NEW - 1)
            assert lib.ccmem_secret_slots() == slots
    assert not hasattr(model, "_cached_continuous_batching_manager")


# ---- requests end --------------------------------------------------------------------------------


def test_streaming() -> None:
    model = tiny_models.decoder("llama")
    texts = prompts(9, 23)
    wanted = alone(model, texts)
    with protected_inputs(model), manager_of(model) as manager:
        manager.add_request(texts[0], request_id="a", max_new_tokens=NEW, streaming=True)
        seen = [list(one.generated_tokens) for one in manager.request_id_iter("a")]
        assert seen == [wanted[0][:count] for count in range(1, NEW + 1)]
        manager.add_request(texts[1], request_id="b", max_new_tokens=NEW)
        assert results(manager, ["b"]) == wanted[1:]


def held(manager: Any) -> Any:
    """The tables of the requests that run, by name."""
    return {
        name: request.tables._tables
        for name, request in manager.batch_processor.cache._requests.items()
    }


def test_cancelled_in_the_middle() -> None:
    """Its key goes, what it had is unreadable, and the other one is none the worse for it."""
    model = tiny_models.decoder("gemma3")
    texts = prompts(9, 23)
    wanted = alone(model, texts[1:], 60)
    slots = lib.ccmem_secret_slots()
    with protected_inputs(model), manager_of(model) as manager:
        manager.add_request(texts[0], request_id="a", max_new_tokens=100_000, streaming=True)
        manager.add_request(texts[1], request_id="b", max_new_tokens=60)
        while manager.get_result(request_id="a", timeout=5) is None:
            pass
        with manager.pause():
            gone = held(manager)["a"]
            assert lib.ccmem_secret_slots() > slots
            assert gone.length(0, 0)[0] > len(texts[0])
        manager.cancel_request("a")
        found = []
        while not found:
            one = manager.get_result(timeout=20)
            found = [one.generated_tokens] if one.request_id == "b" else []
        assert found == wanted
        assert gone.erased
        with pytest.raises(errors.ClosedError):
            gone.length(0, 0)
        with manager.pause():
            assert not held(manager) and lib.ccmem_secret_slots() == slots


@pytest.mark.parametrize("hard", [True, False])
def test_stopped_in_the_middle(hard: bool) -> None:
    model = tiny_models.decoder("llama")
    texts = prompts(9, 23)
    wanted = alone(model, texts, 30)
    slots = lib.ccmem_secret_slots()
    with protected_inputs(model):
        manager = model.init_continuous_batching(
            generation_config=options(), continuous_batching_config=config()
        )
        manager.start()
        names = manager.add_requests(texts, max_new_tokens=30, streaming=True)
        assert manager.get_result(timeout=20) is not None
        processor = manager.batch_processor
        with manager.pause():
            made = list(held(manager).values())
        assert made
        manager.stop(block=True, hard_stop=hard)
        assert all(one.erased for one in made) and lib.ccmem_secret_slots() == slots
        assert not processor.inputs_and_outputs.input_ids.any()
        assert not processor.inputs_and_outputs.output_ids.any()
        found = {}
        while (one := manager.get_result(timeout=1)) is not None:
            found[one.request_id] = one
            if manager.output_router.output_queue.empty():
                break
        if hard:
            assert any(
                "before this request completed" in (one.error or "") for one in found.values()
            )
        else:
            assert [found[name].generated_tokens for name in names] == wanted


def damage(tables: KVTables) -> None:
    place = tables.places(0, 0)[0]
    byte = ctypes.c_ubyte.from_address(place.data + 5)
    byte.value ^= 1


def test_a_changed_block_ends_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.decoder("llama")
    extend = EncryptedPagedCache.extend_read_and_write_indices
    armed = [False]

    def damaged(self: Any, request_id: str, past: int, *others: Any) -> None:
        if armed[0] and past == 25:
            damage(self._requests[request_id].tables.open())
        extend(self, request_id, past, *others)

    monkeypatch.setattr(EncryptedPagedCache, "extend_read_and_write_indices", damaged)
    with protected_inputs(model):
        assert batch(model, prompts(23, 9))
        armed[0] = True
        with pytest.raises(errors.IntegrityError):
            batch(model, prompts(23, 9))


@pytest.mark.parametrize("overwrite", [True, False])
def test_keys_and_values_are_overwritten(overwrite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.decoder("gpt2")
    update = EncryptedPagedCache.update
    left: list[bool] = []

    def watched(self: Any, key: torch.Tensor, value: torch.Tensor, *args: Any, **more: Any) -> Any:
        assert key.any() and value.any()
        result = update(self, key, value, *args, **more)
        left.append(bool(key.any() or value.any()))
        return result

    monkeypatch.setattr(EncryptedPagedCache, "update", watched)
    with protected_inputs(model, overwrite=overwrite):
        batch(model, prompts(9, 4))
    assert left and all(left) == any(left) == (not overwrite)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gpt-neo", 'needs its attention "pyccmem", and this model uses "eager"'),
        ("gpt-neox", "an attention or positions of its own"),
        ("stablelm", "an attention or positions of its own"),
        ("opt", "an attention or positions of its own"),
        ("bloom", 'this model uses "eager"'),
        ("falcon", 'this model uses "sdpa"'),
        ("llama4", "chunked_attention"),
        ("deepseek-v3", "works on its cache itself"),
    ],
)
def test_models_that_are_refused(name: str, match: str) -> None:
    """transformers' own cache fails for each of them."""
    model = tiny_models.decoder(name)
    with protected_inputs(model), pytest.raises(errors.ArgumentError, match=match):
        batch(model, prompts(4, 6))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"use_async_batching": True}, "use_async_batching=True"),
        ({"cpu_offload_space": 1.0}, r"cpu_offload_space=1\.0"),
    ],
)
def test_options_that_are_refused(changes: dict[str, Any], match: str) -> None:
    model = tiny_models.decoder("llama")
    with protected_inputs(model), pytest.raises(errors.ArgumentError, match=match):
        batch(model, prompts(4), settings=config(**changes))


def test_an_encoder_decoder_is_refused() -> None:
    with (
        protected_inputs(tiny_models.encoder_decoder("t5")) as model,
        pytest.raises(errors.ArgumentError, match="has an encoder"),
    ):
        batch(model, prompts(4))


def test_a_manager_from_before_is_refused() -> None:
    """Also one whose loop still runs: its plain cache never meets a protected model."""
    model = tiny_models.decoder("llama")
    asked = {"generation_config": options(), "continuous_batching_config": config()}
    model.generate_batch(prompts(4), persistent_manager=True, **asked)
    with (
        protected_inputs(model),
        pytest.raises(errors.ArgumentError, match="before it was protected"),
    ):
        batch(model, prompts(4))
    model.destroy_cached_continuous_batching_manager()
    manager = model.init_continuous_batching(**asked)
    manager.start()
    try:
        protect_inputs(model)
        manager.add_request(prompts(4)[0], request_id="a", max_new_tokens=2)
        one = manager.get_result(timeout=20)
        assert one is not None and "in the clear" in one.error
    finally:
        manager.stop(block=True)
        unprotect_inputs(model)


def test_a_handle_of_a_batch_stays_closed() -> None:
    model = tiny_models.decoder("llama")
    kept: list[Any] = []
    update = EncryptedPagedCache.update

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        kept.append(update(self, *args, **more))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch, protected_inputs(model):
        patch.setattr(EncryptedPagedCache, "update", watched)
        batch(model, prompts(4))
    key, value = kept[0]
    with pytest.raises(errors.ArgumentError, match="stay encrypted"):
        key + 1
    query = torch.zeros(1, 4, key.shape[2], 8)
    for keys, values, error in (
        (key, value, errors.ClosedError),
        (value, key, errors.ArgumentError),
        (key, kept[1][1], errors.ArgumentError),
        (key, torch.zeros(1), errors.ArgumentError),
    ):
        with pytest.raises(error):
            attention_module.attention(model.model.layers[0].self_attn, query, keys, values, None)


# ---- what another process finds ------------------------------------------------------------------

HOLDER = """
import logging, sys
sys.path[:0] = [sys.argv[1]]
import tiny_models, torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from pyccmem.transformers import protect_inputs
torch.set_num_threads(1)
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
model = tiny_models.decoder("llama")
if sys.argv[2] != "plain":
    protect_inputs(model)
texts = eval(sys.argv[3])
manager = model.init_continuous_batching(
    generation_config=GenerationConfig(max_new_tokens=5000, do_sample=False),
    continuous_batching_config=ContinuousBatchingConfig(
        page_size=16, num_blocks=40, max_batch_tokens=64))
for number, text in enumerate(texts):
    manager.add_request(text, request_id=str(number), max_new_tokens=5000, streaming=True)
manager.start()  # all in one batch
while (one := manager.get_result(timeout=20)) is None or len(one.generated_tokens) < 3:
    pass
with manager.pause():
    print("ready", flush=True)
    input()
manager.stop(block=True, hard_stop=True)
"""


#: Has glibc overwrite what is freed, small blocks too.
OVERWRITTEN = {"GLIBC_TUNABLES": "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"}


@linux_only
@not_sanitized
@pytest.mark.parametrize("kind", ["encrypted", "plain"])
def test_what_another_process_finds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While requests run: nothing of the keys and values of their prompts, where what torch frees
    is overwritten, as `pyccmem run` has it; of the plain model's, which is the control, all."""
    model = tiny_models.decoder("llama")
    texts = prompts(9, 23)
    needles: dict[str, bytes] = {}
    update = EncryptedPagedCache.update

    def watched(self: Any, key: Any, value: Any, layer: int, **more: Any) -> Any:
        if key.shape[2] == sum(map(len, texts)):
            for which, states in (("k", key), ("v", value)):
                for token in range(0, key.shape[2], 3):
                    row = states[0, token % 2, token].numpy().tobytes()
                    needles[f"{which} of layer {layer}, token {token}"] = row
        return update(self, key, value, layer, **more)

    monkeypatch.setattr(EncryptedPagedCache, "update", watched)
    with protected_inputs(model):
        batch(model, texts, 2)
    assert len(needles) == 2 * 2 * 11
    support = str(Path(tiny_models.__file__).parent)
    with secret_search.child(
        HOLDER, support, kind, repr(texts), environment={**child_environment(), **OVERWRITTEN}
    ) as pid:
        found = {name for name, _ in secret_search.find(pid, needles)}
    if kind == "plain":  # behind an attention the last bits may be others
        assert found >= {name for name in needles if "layer 0" in name}
    else:
        assert not found
