# SPDX-License-Identifier: Apache-2.0
"""Measures models in torch and prints JSON. torch_models.py runs it with a number of threads.

Usage: python -m pyccmem.bench.torch_child TASK SCRATCH ...
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import pyccmem.torch
import pyccmem.transformers

from .. import audit, directories
from ..demo.files import PACKAGE
from ..keys import Key
from .linear import THREAD_VARIABLES
from .rounds import CheckError, interleave
from .torch_models import AT_LOAD, HOOKS, IN_PLACE, PLAIN, SEALED

Call = Callable[[], float]

#: 719 MB of float32, and 134 MB for a quick run.
SHAPE = {
    "hidden_size": 1280,
    "intermediate_size": 3456,
    "num_hidden_layers": 8,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
}
QUICK_SHAPE = {
    "hidden_size": 640,
    "intermediate_size": 1728,
    "num_hidden_layers": 8,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
}
VOCABULARY = 8192

PROMPT = 256
CONTEXT = 16  # tokens before those that are timed one by one
TOKENS = 4  # in one sample
PROMPTS = 4  # rounds, as one takes as long as some twenty tokens
BATCHES = 5  # likewise
SLOW_PROMPT = 2.0  # seconds; if one takes longer, it is timed once

SENTENCE = "How do I compress a file without losing anything?"
PASSAGES = 32

#: A way that takes more than this many times as long as the plain one is timed in fewer rounds.
SLOW = 6.0
SLOW_ROUNDS = 3

#: How many samples are looked for in a process that has loaded a model.
SEARCHED = 4096


# ---- the models ----------------------------------------------------------------------------------


def prepare(scratch: Path, quick: bool) -> dict[str, float]:
    """Makes the directories that the other tasks load: plain, sealed, and with AES-GCM."""
    config = LlamaConfig(
        **(QUICK_SHAPE if quick else SHAPE),
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    torch.manual_seed(7)
    model = LlamaForCausalLM(config).eval()
    nbytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    key_file = scratch / "key"
    key_file.touch(0o600)
    key_file.write_bytes(os.urandom(32))
    with Key.from_file(key_file) as key:
        for dtype in (torch.float32, torch.bfloat16):
            plain = directory(scratch, dtype, PLAIN)
            model.to(dtype).save_pretrained(plain)
            sealed = directory(scratch, dtype, SEALED)
            directories.encrypt_directory(plain, sealed, key=key, progress=False)
    return {"bytes": float(nbytes)}


def directory(scratch: Path, dtype: torch.dtype, way: str) -> Path:
    return scratch / f"{str(dtype).partition('.')[2]}-{way}"


def loaded(path: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(path, local_files_only=True).eval()


def in_memory(model: Any) -> Any:
    """Returns the plain model with its weights copied to memory, because from_pretrained() leaves
    them in the mapped file."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.clone()
    return model


# ---- weights sealed by another package -----------------------------------------------------------


class Cryptography:
    """Weights as AES-GCM messages of the package cryptography, one for each tensor."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(os.urandom(16))
        self._forms = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        self._messages: dict[str, tuple[bytes, bytes]] = {}
        for name, tensor in tensors.items():
            nonce = os.urandom(12)
            data = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
            self._messages[name] = (nonce, self._cipher.encrypt(nonce, data, None))

    def __getitem__(self, name: str) -> torch.Tensor:
        dtype, shape = self._forms[name]
        data = bytearray(self._cipher.decrypt(*self._messages[name], None))
        return torch.frombuffer(data, dtype=dtype).reshape(shape)

    def load_into(self, model: Any) -> None:
        """Loads every weight, which stays in the clear from then on."""
        model.load_state_dict({name: self[name] for name in self._forms}, assign=True)

    def hook(self, model: Any) -> None:
        """Makes each module that holds weights decrypt them before it works and drop them
        afterwards."""

        def before(module: Any, names: dict[str, str]) -> None:
            for name, full in names.items():
                module._parameters[name] = torch.nn.Parameter(self[full], requires_grad=False)

        def after(module: Any, names: dict[str, str], empty: Any) -> None:
            for name in names:
                module._parameters[name] = empty

        empty = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        for path, module in model.named_modules():
            names = {
                name: f"{path}.{name}"
                for name, parameter in module._parameters.items()
                if parameter is not None
            }
            if names:
                module.register_forward_pre_hook(lambda m, _, names=names: before(m, names))
                module.register_forward_hook(lambda m, _, __, names=names: after(m, names, empty))
                after(module, names, empty)


# ---- speed ---------------------------------------------------------------------------------------


def seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def decode(model: Any) -> Call:
    """Returns the seconds for a token, after CONTEXT of them, at batch 1."""
    ids = torch.arange(CONTEXT)[None]
    cache = model(ids, use_cache=True).past_key_values
    token = torch.tensor([[5]])

    def run() -> float:
        start = perf_counter()
        for _ in range(TOKENS):
            model(token, past_key_values=cache, use_cache=True)
        took = (perf_counter() - start) / TOKENS
        cache.crop(-TOKENS)
        return took

    return run


def prefill(model: Any) -> Call:
    """Returns the seconds for a prompt."""
    ids = torch.arange(PROMPT)[None] * 31 % VOCABULARY
    return lambda: seconds(lambda: model(ids, use_cache=False, logits_to_keep=1))


def same(models: dict[str, Any], tolerance: float) -> None:
    """Checks that all models give the plain model's logits."""
    ids = torch.arange(12)[None] * 17
    expected = models[PLAIN](ids, use_cache=False).logits.float()
    for way, model in models.items():
        error = (model(ids, use_cache=False).logits.float() - expected).abs().max()
        if not error <= tolerance * expected.abs().max():
            raise CheckError(f"Llama, {way}: the result is wrong, so its speed means nothing.")


def timed(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Returns samples of all, taken in turn; slow ones only in the first rounds."""
    first = {way: call() for way, call in calls.items()}
    quick = {way: call for way, call in calls.items() if first[way] <= SLOW * first[PLAIN]}
    few = rounds if len(quick) == len(calls) else min(rounds, SLOW_ROUNDS)
    found = interleave(calls, few, tries=1, warmup=0)
    rest = interleave(quick, rounds - few, tries=1, warmup=0)
    return {way: [*samples, *rest.get(way, ())] for way, samples in found.items()}


def models(scratch: Path, rounds: int, last: bool) -> dict[str, Any]:
    """Returns the samples of every task, by way."""
    found: dict[str, Any] = {}
    if importlib.util.find_spec(PACKAGE) is not None:
        found |= sentences(rounds)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).partition(".")[2]
        ways = {PLAIN: in_memory(loaded(directory(scratch, dtype, PLAIN)))}
        encrypted = loaded(directory(scratch, dtype, PLAIN))
        with Key.generate() as key:
            ways[IN_PLACE] = pyccmem.torch.encrypt_module(encrypted, key=key)
        ways[SEALED] = loaded(directory(scratch, dtype, SEALED))
        close = 1e-4 if dtype == torch.float32 else 0.05
        same(ways, close)
        prompts = {way: prefill(model) for way, model in ways.items()}
        if dtype == torch.float32:
            found[f"prefill/{name}"] = timed(prompts, min(rounds, PROMPTS))
            ways[HOOKS] = hooked(scratch, dtype)
            same(ways, close)
        elif last:
            few = {way: prompts[way] for way in (PLAIN, IN_PLACE)}
            # Without instructions for bfloat16 the plain model takes many seconds.
            slow = few[PLAIN]() > SLOW_PROMPT
            found[f"prefill/{name}"] = timed(few, 1 if slow else min(rounds, PROMPTS))
        tokens = {way: decode(model) for way, model in ways.items()}
        found[f"decode/{name}"] = timed(tokens, rounds)
    return found


def hooked(scratch: Path, dtype: torch.dtype) -> Any:
    """Returns the model with its weights decrypted by hooks."""
    model = loaded(directory(scratch, dtype, PLAIN))
    Cryptography(dict(model.state_dict())).hook(model)
    return model


def sentences(rounds: int) -> dict[str, Any]:
    """Measures MiniLM by sentence-transformers, plain and encrypted."""
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations
    path = os.path.join(spec.submodule_search_locations[0], "model")
    models = {
        way: SentenceTransformer(path, device="cpu", local_files_only=True)
        for way in (PLAIN, IN_PLACE)
    }
    in_memory(models[PLAIN])
    with Key.generate() as key:
        pyccmem.torch.encrypt_module(models[IN_PLACE], key=key)
    batch = [f"Passage {i}: {SENTENCE} {'And how is it read back? ' * 6}" for i in range(PASSAGES)]
    found = {}
    for task, texts, count in (("sentence", [SENTENCE], 3), ("batch", batch, 1)):
        vectors = {way: model.encode(texts) for way, model in models.items()}
        if np.abs(vectors[PLAIN] - vectors[IN_PLACE]).max() > 1e-5:
            raise CheckError(f"MiniLM, {task}: the result is wrong, so its speed means nothing.")

        def call(model: Any, texts: list[str] = texts, count: int = count) -> Call:
            encode = lambda: model.encode(texts, batch_size=PASSAGES, show_progress_bar=False)  # noqa: E731
            return lambda: min(seconds(encode) for _ in range(count))

        calls = {way: call(model) for way, model in models.items()}
        found[task] = timed(calls, rounds if task == "sentence" else min(rounds, BATCHES))
    return found


# ---- loading and memory --------------------------------------------------------------------------


def load(scratch: Path, way: str) -> dict[str, float]:
    """Loads the float32 model and works with it. Returns how long loading took, the peak of memory
    over what the process had before, and how much of the weights lies in memory in the clear."""
    plain = directory(scratch, torch.float32, PLAIN)
    stored = None
    if way == AT_LOAD:
        # The directory was sealed before, so only loading is timed.
        model = loaded(plain)
        stored = Cryptography(dict(model.state_dict()))
        del model
    samples = audit.samples_from_safetensors(plain / "model.safetensors", SEARCHED)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")  # sets VmHWM to what is resident now (proc(5))
    if stored is None:
        begin = perf_counter()
        model = loaded(directory(scratch, torch.float32, SEALED if way == SEALED else PLAIN))
    else:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig.from_pretrained(plain))
        begin = perf_counter()
        stored.load_into(model)
    took = perf_counter() - begin
    if stored is None:
        prefill(model)()
        decode(model)()
    peak = status("VmHWM") - before
    found = audit.scan(os.getpid(), samples)
    shown = found.found + found.found_in_file
    return {
        "seconds": took,
        "peak": float(peak),
        "secret": 100.0 * shown / found.samples,
    }


def status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise CheckError(f"The system does not tell {field}.")


def main(words: list[str]) -> dict[str, Any]:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    torch.set_num_threads(int(os.environ.get(THREAD_VARIABLES[0], "1")))
    task, scratch, *rest = words
    os.environ.setdefault(pyccmem.transformers.KEY_FILE_VARIABLE, str(Path(scratch, "key")))
    if task == "prepare":
        return dict(prepare(Path(scratch), rest[0] == "1"))
    if task == "models":
        rounds, last = (int(word) for word in rest)
        return models(Path(scratch), rounds, bool(last))
    return dict(load(Path(scratch), rest[0]))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
