# SPDX-License-Identifier: Apache-2.0
"""Tiny models for vLLM, and engines of it in this process."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VOCABULARY = 300

#: Set before vllm is imported: one process, no compiler at the start, no network.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "PYCCMEM_VLLM_GUARD": "off",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(SETTINGS)

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

#: Class of transformers (without the ending) and what differs from the llama.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {}),  # biases
    "mistral-window": ("Mistral", {"sliding_window": 20}),
    "phi3": ("Phi3", {"pad_token_id": 0}),  # matrices that are merged in the file
    "gemma2": ("Gemma2", {"sliding_window": 20, "tie_word_embeddings": True}),  # softcap
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def make_model(name: str, folder: Path, **differing: Any) -> None:
    """Writes a model with random weights of float32, in two shards."""
    import torch
    import transformers

    kind, changes = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**_LLAMA, **changes, **differing})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "experts" not in name:
                parameter.mul_(4)  # logits that differ
            else:
                parameter.add_(torch.randn_like(parameter) / 8)
    model.save_pretrained(folder, max_shard_size="400KB")


@contextmanager
def engine(folder: Path | str, **options: Any) -> Iterator[Any]:
    """An LLM in this process."""
    from vllm import LLM
    from vllm.distributed.parallel_state import destroy_model_parallel

    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 256,
        "kv_cache_memory_bytes": 16 << 20,
        "block_size": 32,
        "dtype": "float32",
        "seed": 0,
    }
    llm = LLM(str(folder), **{**settings, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        destroy_model_parallel()  # that of the next model may have experts
        gc.collect()


def prompts_of(prompts: Sequence[Sequence[int]], salts: Sequence[str | None] = ()) -> list[Any]:
    """Prompts as vLLM takes them, with salts for the first ones."""
    from vllm import TokensPrompt

    given = []
    for number, prompt in enumerate(prompts):
        one: Any = TokensPrompt(prompt_token_ids=list(prompt))
        if number < len(salts) and salts[number] is not None:
            one["cache_salt"] = salts[number]
        given.append(one)
    return given


def good_config() -> dict[str, Any]:
    """What start.check_config() looks at, of a configuration that it takes."""
    return {
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
        "cache_config": SimpleNamespace(cache_dtype="auto", kv_offloading_size=None),
        "use_v2_model_runner": False,
        **dict.fromkeys(
            (
                "lora_config",
                "speculative_config",
                "kv_transfer_config",
                "ec_transfer_config",
                "kv_events_config",
            )
        ),
    }


def answer(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    tokens: int = 6,
    salts: Sequence[str | None] = (),
    lora: Any = None,
) -> list[tuple[list[int], list[dict[int, float]]]]:
    """The tokens of each prompt, chosen greedily, and log-probabilities at each."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        max_tokens=tokens, temperature=0, logprobs=20, detokenize=False, ignore_eos=True
    )
    found = []
    given = prompts_of(prompts, salts)
    for result in llm.generate(given, sampling, use_tqdm=False, lora_request=lora):
        output = result.outputs[0]
        scores = [{token: one.logprob for token, one in at.items()} for at in output.logprobs]
        found.append((list(output.token_ids), scores))
    return found


def furthest(a: Any, b: Any) -> float:
    """How far log-probabilities of two answers are apart, over the tokens up to the first at which
    they chose another one, and over the candidates that both name."""
    most = 0.0
    for (ids_a, scores_a), (ids_b, scores_b) in zip(a, b, strict=True):
        for token_a, token_b, at_a, at_b in zip(ids_a, ids_b, scores_a, scores_b, strict=True):
            both = at_a.keys() & at_b.keys()
            assert len(both) >= 10
            most = max(most, max(abs(at_a[token] - at_b[token]) for token in both))
            if token_a != token_b:
                break
    return most


@contextmanager
def damaged(folder: Path, name: str, page: int = 0) -> Iterator[None]:
    """A byte of a tensor's page is another one, in the sealed file that a server has mapped."""
    for file in folder.glob("*.safetensors"):
        with file.open("r+b", buffering=0) as opened:
            size = int.from_bytes(opened.read(8), "little")
            blobs = json.loads(opened.read(size))
            if name not in blobs:
                continue
            at = 8 + size + blobs[name]["data_offsets"][0] + page * 4096 + 99
            (byte,) = os.pread(opened.fileno(), 1, at)
            os.pwrite(opened.fileno(), bytes([byte ^ 1]), at)
            try:
                yield
            finally:
                os.pwrite(opened.fileno(), bytes([byte]), at)
            return
    raise AssertionError(name)


PROMPTS = [
    [7 * n % VOCABULARY for n in range(3, 60)],
    [5, 6, 7],
    [11 * n % VOCABULARY for n in range(1, 41)],
    [250],
]
