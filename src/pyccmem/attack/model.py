# SPDX-License-Identifier: Apache-2.0
"""The model that answers, and what is looked for of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..demo.llama import Llama, bytes_of
from ..keys import Key
from . import words
from .job import PROTECTED, Job, Rehearsal

__all__ = ["Model"]

#: Pieces of each kind that are looked for.
_PIECES = {"weights": 400, "kv": 240, "unrotated": 120, "hidden": 120}


class Model:
    """A Llama with random weights, plain until protect()."""

    def __init__(self, job: Job) -> None:
        self._sizes = job.sizes
        self._llama = Llama(job.sizes.shape, job.threads)
        self._key_file = job.key_file
        if job.way == PROTECTED:
            self.protect()

    def protect(self) -> None:
        """Encrypts the weights in place; requests from now on have encrypted caches."""
        with Key.from_file(self._key_file) as key:
            self._llama.encrypt(key, activations="wiped")

    def erase(self) -> None:
        """Forgets the weights."""
        self._llama.erase()

    def answer(
        self, text: str, said: Callable[[int], None] | None = None, *, keep: bool = False
    ) -> str:
        """Returns the answer to a text. `said` is called with the number of each token. `keep`:
        holds results of layers until the answer is complete, as a program that looks at hidden
        states does."""
        import torch

        ids = torch.tensor([words.to_ids(text)])
        streamer = _Streamer(said)
        with self._results(keep):
            self._generate(ids, streamer)
        return streamer.text

    def _generate(self, ids: Any, streamer: Any, **options: Any) -> Any:
        import torch

        return self._llama.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self._sizes.answer,
            do_sample=False,
            repetition_penalty=3.0,  # random weights would repeat themselves, and so tell nothing
            pad_token_id=0,
            streamer=streamer,
            **options,
        )

    @contextmanager
    def _results(self, keep: bool) -> Iterator[list[tuple[list[Any], list[Any]]]]:
        """Notes the keys of each layer before their rotation, and its hidden states."""
        if not keep:
            yield []
            return
        layers = self._llama.model.model.layers
        results: list[tuple[list[Any], list[Any]]] = [([], []) for _ in layers]
        hooks = []
        for layer, (keys, states) in zip(layers, results, strict=True):
            hooks.append(layer.self_attn.k_proj.register_forward_hook(_note(keys)))
            hooks.append(layer.register_forward_hook(_note(states)))
        try:
            yield results
        finally:
            for hook in hooks:
                hook.remove()

    # ---- what is looked for

    def rehearse(self, text: str) -> Rehearsal:
        """Answers, and takes pieces of what was computed meanwhile."""
        import torch

        ids = torch.tensor([words.to_ids(text)])
        cache = self._llama.new_cache()
        streamer = _Streamer(None)
        begin = time.perf_counter()
        with self._results(True) as results:
            made = self._generate(ids, streamer, cache=cache)[0].tolist()
        seconds = time.perf_counter() - begin
        pieces: dict[str, bytes] = {}
        for kind, place, row in self._pieces(cache, results, set(made)):
            pieces[f"{kind}/{place}"] = bytes_of(row)
        given = ids.shape[1]
        return Rehearsal(pieces, tuple(made[:given]), tuple(made[given:]), streamer.text, seconds)

    def _pieces(self, cache: Any, results: Any, used: set[int]) -> Iterator[tuple[str, str, Any]]:
        drawn, sizes = random.Random(1), self._sizes
        opened = self._llama.cached(cache)
        seen: set[tuple[str, str]] = set()
        while len(seen) < sum(count for kind, count in _PIECES.items() if kind != "weights"):
            kind = ("kv", "unrotated", "hidden")[
                (len(seen) >= _PIECES["kv"]) + (len(seen) >= _PIECES["kv"] + _PIECES["unrotated"])
            ]
            # Not of layer 0, where what is not rotated is the same for the same word.
            layer = drawn.randrange(1, sizes.layers)
            head, token = drawn.randrange(sizes.heads), drawn.randrange(1, sizes.prompt)
            which = drawn.choice("kv") if kind == "kv" else ""
            place = f"layer {layer}[{which}{head}, {token}]"
            if (kind, place) in seen:
                continue
            seen.add((kind, place))
            if kind == "kv":
                yield kind, place, opened[layer][which == "v"][head, token]
            elif kind == "unrotated":
                row = results[layer][0][0][0, token].view(sizes.heads, sizes.head_size)
                yield kind, place, row[head]
            else:
                row = results[layer][1][0][0, token].view(sizes.heads, -1)
                yield kind, place, row[head]
        if self._llama.encrypted:
            return
        matrices = [(n, p.detach()) for n, p in self._llama.model.named_parameters() if p.ndim == 2]
        for number in range(_PIECES["weights"]):
            name, matrix = matrices[number % len(matrices)]
            row, column = drawn.randrange(matrix.shape[0]), drawn.randrange(matrix.shape[1] - 16)
            if "embed" in name and row in used:  # these rows are results
                continue
            yield "weights", f"{name}[{row}, {column}]", matrix[row, column : column + 16]


def _note(kept: list[Any]) -> Callable[..., None]:
    def hook(_module: Any, _given: Any, result: Any) -> None:
        kept.append(result[0] if isinstance(result, tuple) else result)

    return hook


class _Streamer:
    """Puts the answer's text together as its tokens come, as a server that streams does."""

    def __init__(self, said: Callable[[int], None] | None) -> None:
        self.text = ""
        self._said = said
        self._count = -1

    def put(self, ids: Any) -> None:
        """Is given the prompt, then each token."""
        self._count += 1
        if self._count:
            self.text = f"{self.text} {words.to_text(ids.tolist())}".lstrip()
            if self._said is not None:
                self._said(self._count)

    def end(self) -> None:
        """The answer is complete."""
