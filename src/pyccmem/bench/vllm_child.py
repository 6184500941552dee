# SPDX-License-Identifier: Apache-2.0
"""An engine of vLLM's that runs requests as it is told to. vllm_engines.py runs it in a process of
its own.

Usage: python -m pyccmem.bench.vllm_child prepare DIRECTORY
       python -m pyccmem.bench.vllm_child DIRECTORY QUANTIZATION EAGER

The first writes a model. The second prints lines of "bench: " and JSON: at first vLLM's version,
then an answer for each line of the standard input. ["run", REQUESTS, PROMPT, TOKENS] gives seconds
of all, seconds to the first token, bytes; ["scores"] gives pairs of tokens and log-probabilities.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

#: 346 million parameters.
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}

#: Tokens of a request at most, and bytes for keys and values: 48 KiB a token, 16 requests.
LONGEST, CACHE = 1152, 1 << 30


def prepare(folder: Path) -> None:
    """Writes a Llama with random weights of bfloat16."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    model.save_pretrained(folder)


def resident() -> int:
    """The bytes of this process and of those that it has started; shared ones count in part."""
    total, family = 0, [os.getpid()]
    for pid in family:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                family += map(int, (task / "children").read_text("ascii").split())
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
        except FileNotFoundError:
            continue
    return total


class Engine:
    """What the lines of the standard input ask for."""

    def __init__(self, folder: str, quantization: str, eager: bool) -> None:
        from vllm import LLM

        self._llm = LLM(
            folder,
            quantization=None if quantization == "none" else quantization,
            enforce_eager=eager,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=LONGEST,
            max_num_seqs=16,
            kv_cache_memory_bytes=CACHE,
            enable_prefix_caching=False,
            seed=0,
        )
        self._random = random.Random(0)

    def _prompt(self, tokens: int) -> Any:
        from vllm import TokensPrompt

        drawn = [self._random.randrange(3, SHAPE["vocab_size"]) for _ in range(tokens)]
        return TokensPrompt(prompt_token_ids=drawn)

    def run(self, requests: int, prompt: int, tokens: int) -> tuple[float, float, int]:
        from vllm import SamplingParams

        sampling = SamplingParams(
            max_tokens=tokens, temperature=0, detokenize=False, ignore_eos=True
        )
        engine, prompts = self._llm.llm_engine, [self._prompt(prompt) for _ in range(requests)]
        first: dict[str, float] = {}
        made = 0
        start = perf_counter()
        for number, one in enumerate(prompts):
            engine.add_request(str(number), one, sampling)
        while engine.has_unfinished_requests():
            for result in engine.step():
                if result.outputs[0].token_ids:
                    first.setdefault(result.request_id, perf_counter() - start)
                if result.finished:
                    made += len(result.outputs[0].token_ids)
        seconds = perf_counter() - start
        if made != requests * tokens:
            raise SystemExit(f"vLLM made {made} tokens instead of {requests * tokens}")
        return seconds, median(first.values()), resident()

    def scores(self) -> list[tuple[int, float]]:
        from vllm import SamplingParams, TokensPrompt

        prompt = TokensPrompt(prompt_token_ids=[7 * n % 32000 for n in range(3, 67)])
        sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=10, detokenize=False)
        (result,) = self._llm.generate(prompt, sampling, use_tqdm=False)
        return [(token, one.logprob) for token, one in result.outputs[0].logprobs[0].items()]


def say(answer: Any) -> None:
    print("bench:", json.dumps(answer), flush=True)


def main(folder: str, quantization: str, eager: str) -> None:
    if folder == "prepare":
        return prepare(Path(quantization))
    engine = Engine(folder, quantization, eager == "1")
    from vllm.version import __version__

    engine.run(1, 16, 2)  # what is made at first use
    say(f"vLLM {__version__}")
    for line in sys.stdin:
        wish, *given = json.loads(line)
        say(engine.run(*given) if wish == "run" else engine.scores())
    return None


if __name__ == "__main__":
    main(*sys.argv[1:], *[""] * (4 - len(sys.argv)))
