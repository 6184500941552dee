# SPDX-License-Identifier: Apache-2.0
"""Job: what the parent tells a server to be, and its later requests. Rehearsal: what a child
computes beforehand of what is looked for later."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..demo.llama import Shape
from .words import WORDS

__all__ = [
    "ARM",
    "ERASE",
    "FORK",
    "GO",
    "NOTE",
    "OVER_READ",
    "PAUSED",
    "PLAIN",
    "PROTECTED",
    "REAP",
    "REST",
    "Job",
    "Rehearsal",
    "Sizes",
]

#: The twin that must be found out, and what is to be attacked.
PLAIN, PROTECTED = "unprotected", "protected"

#: Requests: pause the next answer at a token (PAUSED comes when it is there) and go on; fork
#: a child, and reap it when it was killed; read beyond blocks of the heap into a file; wait until
#: no request is served; forget model and key; do something with the note.
ARM, GO, FORK, REAP, OVER_READ, REST, ERASE, NOTE = (
    "arm",
    "go",
    "fork",
    "reap",
    "over-read",
    "rest",
    "erase",
    "note",
)
PAUSED = "paused"


@dataclass(frozen=True)
class Sizes:
    """The model's and the request's."""

    layers: int = 4
    width: int = 256  # of the hidden states
    heads: int = 4  # of keys and values; of queries there are as many
    head_size: int = 64
    prompt: int = 200  # tokens of the prompt
    answer: int = 24  # and of the answer
    dtype: str = "float32"

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return Shape(
            words=WORDS,
            layers=self.layers,
            width=self.width,
            queries=self.heads,
            heads=self.heads,
            head_size=self.head_size,
            tokens=self.prompt + self.answer,
            dtype=self.dtype,
        )

    @property
    def pause(self) -> int:
        """The token of the answer at which a request is halted."""
        return self.answer // 2


@dataclass(frozen=True)
class Job:
    """What a server must be."""

    sizes: Sizes
    way: str
    threads: int
    key_file: (
        str  # 32 bytes: the key of weights and note, which the unprotected twin holds as bytes
    )
    marker: bytes = field(repr=False)  # lies in the process, for each way to find


@dataclass(frozen=True)
class Rehearsal:
    """What the model computes for a prompt, as bytes by name: KIND/PLACE."""

    pieces: dict[str, bytes] = field(repr=False)
    ids: tuple[int, ...]  # of the prompt
    answer_ids: tuple[int, ...]
    answer: str
    seconds: float  # that the answer took
