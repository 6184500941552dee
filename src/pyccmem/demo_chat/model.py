# SPDX-License-Identifier: Apache-2.0
"""The model of the chat, and its conversation."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..demo.llama import Llama, bytes_of
from ..keys import Key
from .job import ENCRYPTED, WORDS, Job, Rows, Sizes, Step, Talk

__all__ = ["Chat"]


class Chat:
    """The model, plain until encrypt(), and one conversation with it."""

    def __init__(self, job: Job) -> None:
        sizes = self._sizes = job.sizes
        self._llama = Llama(sizes.shape, job.threads)
        self._cache: Any = None
        self._opened: Any = None
        if job.way == ENCRYPTED:
            self.encrypt()

    def encrypt(self) -> None:
        """Encrypts the weights in place; conversations from now on have an encrypted cache."""
        self.forget()
        with Key.generate() as key:
            self._llama.encrypt(key)

    # ---- a conversation ----

    def talk(self, say: Callable[[Step], None] | None = None) -> Talk:
        """Holds the conversation from its beginning, and keeps its cache. The same seed asks the
        same questions and draws the same words. `say` is called for each token of an answer."""
        import torch

        self.forget()
        sizes = self._sizes
        questions = torch.Generator().manual_seed(1)
        torch.manual_seed(2)
        self._cache = self._llama.new_cache()
        text = torch.empty((1, 0), dtype=torch.long)
        clock = _Clock(say)
        for turn in range(sizes.turns):
            shape = (1, sizes.question(turn))
            question = torch.randint(0, WORDS, shape, generator=questions)
            text = torch.cat((text, question), 1)
            clock.ask(text.shape[1])
            text = self._llama.model.generate(
                text,
                attention_mask=torch.ones_like(text),
                cache=self._cache,
                max_new_tokens=sizes.answer,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
                streamer=clock,
            )
        return clock.result(text[0].tolist())

    def forget(self) -> None:
        """Drops the cache, by erase() where it is encrypted."""
        cache, self._cache, self._opened = self._cache, None, None
        if cache is not None and self._llama.encrypted:
            cache.erase()
        del cache
        gc.collect()

    def open(self) -> None:
        """Opens the whole cache into memory of pyccmem's, where a search has to find it."""
        self._opened = self._llama.cached(self._cache)

    def shut(self) -> None:
        """Drops what open() has opened."""
        self._opened = None
        gc.collect()

    # ---- before the proof ----

    def rehearse(self, count: int) -> Rows:
        """The conversation, and `count` rows each of the first question's keys and values, of the
        others', and of the keys before their rotation."""
        import torch

        sizes = self._sizes
        before: list[list[Any]] = [[] for _ in range(sizes.layers)]

        def keep(kept: list[Any]) -> Callable[..., None]:
            return lambda _module, _given, result: kept.append(result[0].clone())

        hooks = [
            layer.self_attn.k_proj.register_forward_hook(keep(kept))
            for layer, kept in zip(self._llama.model.model.layers, before, strict=True)
        ]
        talk = self.talk()
        for hook in hooks:
            hook.remove()
        layers = self._llama.cached(self._cache)
        made = [torch.cat(kept).view(-1, sizes.heads, sizes.head_size) for kept in before]
        rows: dict[str, bytes] = {}
        places = random.Random(3)
        # The last token of all is not in the cache.
        for first, last in ((1, sizes.prompt), (sizes.prompt, sizes.tokens - 1)):
            for kind, layer, head, token in _some(places, sizes, ("k", "v"), first, last, count):
                row = layers[layer][kind == "v"][head, token]
                rows[f"{kind}.{layer}.{head}.{token}"] = bytes_of(row)
        for kind, layer, head, token in _some(places, sizes, ("before",), 1, sizes.prompt, count):
            rows[f"{kind}.{layer}.{head}.{token}"] = bytes_of(made[layer][token, head])
        return Rows(rows, talk)


class _Clock:
    """A streamer for generate(): tells and times its tokens."""

    def __init__(self, say: Callable[[Step], None] | None) -> None:
        self._say = say
        self._cached = 0
        self._prompt_seconds: list[float] = []
        self._answer_seconds: list[float] = []
        self._answering = False
        self._asked = False
        self._last = 0.0

    def ask(self, tokens: int) -> None:
        """A generate() begins, of a text of so many tokens."""
        self._cached = tokens - 1
        self._asked = self._answering = False
        self._last = time.perf_counter()

    def put(self, _: Any) -> None:
        """Is given the question, then each token."""
        if not self._asked:
            self._asked = True
            return
        now = time.perf_counter()
        (self._answer_seconds if self._answering else self._prompt_seconds).append(now - self._last)
        self._answering = True
        self._last = now
        self._cached += 1
        if self._say is not None:
            self._say(Step(self._cached))

    def end(self) -> None:
        """The answer is complete."""

    def result(self, tokens: list[int]) -> Talk:
        return Talk(
            tokens=tuple(tokens),
            prompt_seconds=self._prompt_seconds[0],
            answer_tokens=len(self._answer_seconds),
            answer_seconds=sum(self._answer_seconds),
        )


def _some(
    places: random.Random, sizes: Sizes, kinds: tuple[str, ...], first: int, last: int, count: int
) -> Iterator[tuple[str, int, int, int]]:
    """Up to `count` different places of rows (kind, layer, head, token), of tokens from `first` to
    before `last`. Not of layer 0, where all rows of V for one word are the same."""
    limits = (len(kinds), sizes.layers - 1, sizes.heads, last - first)
    for place in places.sample(range(math.prod(limits)), min(count, math.prod(limits))):
        kind, layer, head, token = np.unravel_index(place, limits)
        yield kinds[kind], 1 + int(layer), int(head), first + int(token)
