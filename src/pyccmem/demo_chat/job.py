# SPDX-License-Identifier: Apache-2.0
"""Job: what the parent tells a child to be, and its later requests. Step, Talk and Rows: what the
child answers."""

from __future__ import annotations

from dataclasses import dataclass

from ..demo.llama import Shape

__all__ = [
    "ENCRYPTED",
    "FORGET",
    "OPEN",
    "PLAIN",
    "QUIET",
    "REHEARSE",
    "SHUT",
    "TALK",
    "WORDS",
    "Job",
    "Rows",
    "Sizes",
    "Step",
    "Talk",
]

#: Requests: a conversation; one without a word meanwhile, whose cache is dropped; opens the whole
#: cache and shuts it again; drops it; computes what is looked for later.
TALK, QUIET, OPEN, SHUT, FORGET, REHEARSE = "talk", "quiet", "open", "shut", "forget", "rehearse"

#: Of the vocabulary.
WORDS = 8192

#: The ways to hold weights and cache.
PLAIN, ENCRYPTED = "plain", "encrypted"


@dataclass(frozen=True)
class Sizes:
    """The model's and the conversation's."""

    layers: int
    width: int  # of the hidden states
    heads: int  # of keys and values
    head_size: int
    dtype: str  # "float32" or "bfloat16"
    turns: int
    prompt: int  # tokens of the first question; later ones have a quarter
    answer: int  # tokens of each answer

    @property
    def tokens(self) -> int:
        """Of the whole conversation."""
        return self.prompt + (self.turns - 1) * self.question(1) + self.turns * self.answer

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return Shape(
            words=WORDS,
            layers=self.layers,
            width=self.width,
            queries=2 * self.heads,
            heads=self.heads,
            head_size=self.head_size,
            tokens=self.tokens,
            dtype=self.dtype,
        )

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        attention = 6 * self.width * self.heads * self.head_size
        layer = attention + 3 * self.width * self.shape.inner + 2 * self.width
        return self.layers * layer + 2 * WORDS * self.width + self.width

    def question(self, turn: int) -> int:
        """Tokens of the question of a turn."""
        return max(1, self.prompt // 4) if turn else self.prompt


@dataclass(frozen=True)
class Job:
    """What a child must be."""

    sizes: Sizes
    way: str
    threads: int  # of torch and of pyccmem
    rows: int  # to be taken of each part of the conversation, by the child that rehearses


@dataclass(frozen=True)
class Step:
    """A token was made."""

    cached: int  # tokens whose keys and values were in the cache then


@dataclass(frozen=True)
class Talk:
    """A conversation that came to its end."""

    tokens: tuple[int, ...]
    prompt_seconds: float  # from the first question to the first token
    answer_tokens: int  # made after another token of the same answer, and
    answer_seconds: float  # the seconds that these took


@dataclass(frozen=True)
class Rows:
    """Rows of one head for one token, as their bytes, by name: KIND.LAYER.HEAD.TOKEN. KIND is "k"
    or "v" of the cache, or "before", the keys before their rotation, which no cache holds."""

    rows: dict[str, bytes]
    talk: Talk
