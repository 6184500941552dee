# SPDX-License-Identifier: Apache-2.0
"""A llama.cpp of a Python package, which makes tokens as it is told to. llama.py runs it in a new
process, so that plain and encrypted ones do not share anything.

Usage: python -m pyccmem.bench.llama_child PACKAGE MODEL THREADS [BACKEND]

PACKAGE is llama_cpp or xllamacpp, BACKEND the ggml backend to load. For each line on the standard
input, a number of tokens, prints the seconds that a token took, and the tokens' numbers where the
package gives them; first of all the version.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

#: Tokens that llama.cpp holds keys and values for.
CONTEXT = 256

Made = tuple[float, list[int]]
FIRST = 5  # a token of the vocabulary


def _llama_cpp(model: str, threads: int, backend: str | None) -> Callable[[int], Made]:
    module: Any = importlib.import_module("llama_cpp")
    if backend is not None:
        import ctypes

        ggml = importlib.import_module("llama_cpp._ggml").libggml
        ggml.ggml_backend_load.restype = ctypes.c_void_p
        if not ggml.ggml_backend_load(backend.encode()):
            raise SystemExit(f"ggml refuses {backend}")
    llama = module.Llama(model, n_ctx=CONTEXT, n_threads=threads, n_batch=64, verbose=False)

    def make(count: int) -> Made:
        llama.reset()
        llama.eval([FIRST])
        tokens: list[int] = []
        start = perf_counter()
        for _ in range(count):
            tokens.append(int(llama.sample(temp=0.0)))
            llama.eval(tokens[-1:])
        return (perf_counter() - start) / count, tokens

    return make


def _xllamacpp(model: str, threads: int, backend: str | None) -> Callable[[int], Made]:
    if backend is not None:
        raise SystemExit("xllamacpp cannot be told to load a backend before its model")
    module: Any = importlib.import_module("xllamacpp")
    parameters = module.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = model, CONTEXT, 1
    parameters.cpuparams.n_threads = threads
    parameters.verbosity = 0
    server = module.Server(parameters)

    def make(count: int) -> Made:
        answer = server.handle_completions(
            {"prompt": [FIRST], "n_predict": count + 1, "ignore_eos": True, "temperature": 0}
        )
        # The first token comes with the prompt.
        return float(answer["timings"]["predicted_ms"]) / 1e3 / (count + 1), []

    return make


def main(package: str, model: str, threads: str, backend: str | None = None) -> None:
    open_with = {"llama_cpp": _llama_cpp, "xllamacpp": _xllamacpp}[package]
    make = open_with(model, int(threads), backend)
    version = getattr(sys.modules[package], "__version__", "of an unknown version")
    print(json.dumps(f"{package} {version}"), flush=True)
    for line in sys.stdin:
        print(json.dumps(make(int(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
