# SPDX-License-Identifier: Apache-2.0
"""Tiny models of many architectures with random weights, and the ways to generate with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

VOCABULARY = 67
PAD = 0

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_SHORT = 5  # a window that generation soon leaves
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

#: Class (without the ending), settings, and whether they come on top of the common ones.
DECODERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("Llama", {}, True),
    "mistral": ("Mistral", {"sliding_window": _SHORT}, True),
    "qwen2": ("Qwen2", {}, True),
    "qwen2-sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": _SHORT, "max_window_layers": 1},
        True,
    ),
    "qwen3": ("Qwen3", {"head_dim": 8}, True),
    "gemma": ("Gemma", {"head_dim": 8}, True),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": _SHORT}, True),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 8,
            "sliding_window": _SHORT,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        True,
    ),
    "phi": ("Phi", {}, True),
    "phi3": ("Phi3", {}, True),
    "gpt2": ("GPT2", _GPT2, False),
    "gpt-j": ("GPTJ", {**_GPT2, "rotary_dim": 4}, False),
    "gpt-neo": (
        "GPTNeo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": _SHORT,
            "max_position_embeddings": 128,
        },
        False,
    ),
    "gpt-neox": ("GPTNeoX", {}, True),
    "gpt-bigcode": ("GPTBigCode", _GPT2, False),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}, True),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, False),
    "mpt": (
        "Mpt",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "use_cache": True},
        False,
    ),
    "falcon": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, True),
    "falcon-alibi": (
        "Falcon",
        {"alibi": True, "new_decoder_architecture": False, "multi_query": False},
        True,
    ),
    "stablelm": ("StableLm", {}, True),
    "starcoder2": ("Starcoder2", {"sliding_window": None}, True),
    "olmo": ("Olmo", {}, True),
    "olmo2": ("Olmo2", {}, True),
    "granite": ("Granite", {}, True),
    "cohere": ("Cohere", {}, True),
    "cohere2": ("Cohere2", {"sliding_window": _SHORT}, True),
    "exaone4": ("Exaone4", {"sliding_window": _SHORT, "sliding_window_pattern": 2}, True),
    "gpt-oss": (
        "GptOss",
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": _SHORT,
        },
        True,
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}, True),
    "qwen2-moe": (
        "Qwen2Moe",
        {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
        True,
    ),
    "smollm3": ("SmolLM3", {}, True),
    "llama4": (
        "Llama4",
        {
            "attention_chunk_size": _SHORT,
            "head_dim": 8,
            "num_local_experts": 2,
            "intermediate_size_mlp": 48,
        },
        True,
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **_EXPERTS,
            "q_lora_rank": 16,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
        True,
    ),
}

#: Those whose attention is not transformers' interface, or that compute with what they have cached.
OPENED = {"bloom", "mpt", "falcon", "falcon-alibi", "gpt-neo", "deepseek-v3"}

ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "bart": (
        "Bart",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 128,
        },
    ),
    "marian": (
        "Marian",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 128,
            "scale_embedding": True,
        },
    ),
}

_TEXT_CONFIGS = {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}
_CLASSES = {
    "GPT2": "GPT2LMHeadModel",
    "T5": "T5ForConditionalGeneration",
    "Bart": "BartForConditionalGeneration",
    "Marian": "MarianMTModel",
}


def _randomized(model: Any) -> Any:
    """Weights that tell all positions apart: what a model begins with hardly does."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                size = parameter.shape[-1] ** -0.5 * (0.4 if "emb" in name else 1.5)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
            elif "sinks" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def decoder(name: str, **changes: Any) -> Any:
    """A model of DECODERS, the same each time."""
    kind, settings, common = DECODERS[name]
    config_class = getattr(transformers, _TEXT_CONFIGS.get(kind, f"{kind}Config"))
    ids = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": PAD}
    own = {"vocab_size": VOCABULARY} if not common else _COMMON
    config = config_class(**{**own, **ids, **settings, **changes})
    torch.manual_seed(1)
    return _randomized(getattr(transformers, _CLASSES.get(kind, f"{kind}ForCausalLM"))(config))


def encoder_decoder(name: str) -> Any:
    """A model of ENCODER_DECODERS, the same each time."""
    kind, settings = ENCODER_DECODERS[name]
    ids = {
        "bos_token_id": 1,
        "eos_token_id": None,
        "forced_eos_token_id": None,
        "pad_token_id": PAD,
        "decoder_start_token_id": 1,
    }
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, tie_word_embeddings=True, **ids, **settings
    )
    torch.manual_seed(1)
    return _randomized(getattr(transformers, _CLASSES[kind])(config))


def whisper() -> Any:
    """A model that hears 60 frames of 8 bands."""
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=30,
        max_target_positions=64,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **heads,
        **ids,
    )
    return _randomized(transformers.WhisperForConditionalGeneration(config))


_IDS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": PAD}


def sharing(name: str) -> Any:
    """A model whose last layers use keys and values of earlier ones: "gemma3n", "gemma4"."""
    settings = {
        **_COMMON,
        **_IDS,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "sliding_window": _SHORT,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    if name == "gemma3n":
        config: Any = transformers.Gemma3nTextConfig(**settings, laurel_rank=4)
        return _randomized(transformers.Gemma3nForCausalLM(config))
    config = transformers.Gemma4TextConfig(**settings, global_head_dim=8)
    return _randomized(transformers.Gemma4ForCausalLM(config))


def hybrid(name: str) -> Any:
    """A model of which one layer has an attention: "lfm2" (the second, as layer 0 has no keys),
    "qwen3-next"; "falcon-h1", where every layer has both; "mamba", without one."""
    if name == "lfm2":
        config: Any = transformers.Lfm2Config(
            **_COMMON, **_IDS, layer_types=["conv", "full_attention"]
        )
        return _randomized(transformers.Lfm2ForCausalLM(config))
    if name == "qwen3-next":
        config = transformers.Qwen3NextConfig(
            **_COMMON,
            **_IDS,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
            head_dim=8,
        )
        return _randomized(transformers.Qwen3NextForCausalLM(config))
    if name == "falcon-h1":
        config = transformers.FalconH1Config(
            **_COMMON, **_IDS, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
        )
        return _randomized(transformers.FalconH1ForCausalLM(config))
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, **_IDS
    )
    return _randomized(transformers.MambaForCausalLM(config))


def prompt(sequences: int, tokens: int, seed: int = 3) -> torch.Tensor:
    """Ids without padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (sequences, tokens), generator=generator)


Result = tuple[torch.Tensor, torch.Tensor]


def _generated(model: Any, ids: torch.Tensor, mask: Any = None, **options: Any) -> Result:
    """Tokens, and the scores behind them."""
    torch.manual_seed(11)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        return_dict_in_generate=True,
        output_logits=True,
        **{"max_new_tokens": 7, "do_sample": False, **options},
    )
    return found.sequences, torch.stack(found.logits)


def greedy(model: Any) -> Result:
    return _generated(model, prompt(2, 8))


def sampled(model: Any) -> Result:
    return _generated(model, prompt(2, 6), do_sample=True, top_k=0, num_return_sequences=2)


def beams(model: Any) -> Result:
    return _generated(model, prompt(2, 6), num_beams=3, num_return_sequences=2)


def sampled_beams(model: Any) -> Result:
    return _generated(model, prompt(1, 6), num_beams=3, do_sample=True, top_k=0)


def assisted(model: Any) -> Result:
    """With a draft by a model of another architecture, which is wrong most of the time."""
    return _generated(model, prompt(1, 8), assistant_model=decoder("llama", num_hidden_layers=1))


def looked_up(model: Any) -> Result:
    """With a draft from the text itself, which repeats."""
    ids = prompt(1, 5).repeat(1, 3)
    return _generated(model, ids, prompt_lookup_num_tokens=3, max_matching_ngram_size=2)


def contrastive(model: Any) -> Result:
    """A small search of this kind, since transformers has its own on a server: of three candidates
    the one after which the model is surest of the next token."""

    def search(
        model: Any, input_ids: Any, cache: Any = None, generation_config: Any = None, **_: Any
    ) -> Any:
        scores = []
        ids, logits = input_ids, model(input_ids, cache=cache).logits[:, -1]
        for _step in range(5):
            scores.append(logits)
            candidates = logits.topk(3).indices.reshape(-1, 1)
            cache.batch_repeat_interleave(3)
            after = model(candidates, cache=cache).logits[:, -1]
            best = after.max(1).values.view(-1, 3).argmax(1) + 3 * torch.arange(len(ids))
            cache.batch_select_indices(best)
            ids, logits = torch.cat((ids, candidates[best]), 1), after[best]
        return ids, torch.stack(scores)

    ids = prompt(2, 7)
    found: Result = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=search,
        do_sample=False,
        max_new_tokens=5,
    )
    return found


def left_padded(model: Any) -> Result:
    ids, mask = prompt(3, 8), torch.ones(3, 8, dtype=torch.long)
    for row, count in ((1, 3), (2, 6)):
        ids[row, :count], mask[row, :count] = PAD, 0
    return _generated(model, ids, mask)


def right_padded(model: Any) -> Result:
    """Two calls of the model itself; only positions that are no padding count."""
    ids, mask = prompt(3, 8), torch.ones(3, 8, dtype=torch.long)
    for row, count in ((1, 3), (2, 6)):
        ids[row, 8 - count :], mask[row, 8 - count :] = PAD, 0
    with torch.no_grad():
        first = model(ids, attention_mask=mask, use_cache=True)
        new = prompt(3, 2, 5)
        longer = torch.cat((mask, torch.ones(3, 2, dtype=torch.long)), 1)
        second = model(new, attention_mask=longer, cache=first.cache, use_cache=True)
    return ids, torch.cat((first.logits[mask.bool()], second.logits.flatten(0, 1)))


#: Ways that need no more than the model.
MODES: dict[str, Callable[[Any], Result]] = {
    "greedy": greedy,
    "sampled": sampled,
    "beams": beams,
    "sampled beams": sampled_beams,
    "assisted": assisted,
    "prompt lookup": looked_up,
    "contrastive": contrastive,
    "left-padded": left_padded,
    "right-padded": right_padded,
}


def _source() -> dict[str, torch.Tensor]:
    """An encoder's input, one sequence padded."""
    ids, mask = prompt(2, 9), torch.ones(2, 9, dtype=torch.long)
    ids[1, 6:], mask[1, 6:] = PAD, 0
    return {"inputs": ids, "attention_mask": mask}


def _translated(model: Any, **options: Any) -> Result:
    torch.manual_seed(11)
    found = model.generate(
        **{**_source(), "max_new_tokens": 7, "do_sample": False, **options},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return found.sequences, torch.stack(found.logits)


#: The same for encoder-decoders.
TRANSLATIONS: dict[str, Callable[[Any], Result]] = {
    "greedy": _translated,
    "sampled": lambda model: _translated(model, do_sample=True, num_return_sequences=2),
    "beams": lambda model: _translated(model, num_beams=3, num_return_sequences=2),
    "sampled beams": lambda model: _translated(model, num_beams=3, do_sample=True),
    "decoder prompt": lambda model: _translated(model, decoder_input_ids=prompt(2, 4, 9)),
    "prompt lookup": lambda model: _translated(
        model,
        inputs=prompt(1, 5).repeat(1, 3),
        attention_mask=None,
        decoder_input_ids=prompt(1, 3).repeat(1, 2),
        prompt_lookup_num_tokens=3,
    ),
}
