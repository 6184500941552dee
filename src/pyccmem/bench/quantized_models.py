# SPDX-License-Identifier: Apache-2.0
"""Claim: a Llama in transformers whose weights are encrypted blocks makes more tokens a second than
the plain one in bfloat16, and takes less than a third of its memory.

Models of about 300 million and 1.1 billion parameters with random weights: plain bfloat16,
encrypted bfloat16, and encrypted blocks of several formats. All lie in one process
(quantized_child.py) and take turns, with the same number of threads.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import children
from .rounds import Figure, Plan, Summary, Target
from .threads import cores

GROUP = "quantised Llama in torch"

#: The packages that a run needs; if one is missing nothing is measured.
PACKAGES = ("torch", "transformers", "ml_dtypes")

PLAIN, ENCRYPTED = "plain", "bfloat16"

#: The formats of the encrypted models, and the least speed of their tokens as a multiple of the
#: plain model's.
FORMATS: dict[str, float | None] = {"q4_k": 2.5, "q8_0": None, "int8_row": None}

#: The most bytes of the weights as a multiple of bfloat16's.
TARGET_BYTES = 0.32

#: The shapes of Llamas by the number of their parameters, as words.
SHAPES: dict[str, dict[str, int]] = {
    "0.3 billion": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 32000,
    },
    "1.1 billion": {  # TinyLlama's
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
}

TASKS = {"decode": "a token", "prefill": "a prompt of 256"}


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured because a package is missing."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return (f"{GROUP}: {', '.join(absent)} is not installed.",) if absent else ()


def figures(plan: Plan) -> Iterator[Figure]:
    if missing():
        return
    for number, size in enumerate(SHAPES):
        if plan.quick and number:
            return
        for threads in (1, 2)[: cores()]:
            group = f"{GROUP}, {size} parameters, {threads} thread{'s' if threads > 1 else ''}"
            plan.progress(group)
            found = children.child("quantized_child", GROUP, threads, size, plan.rounds)
            yield from _speeds(f"quantized/{number}/{threads}", group, found["seconds"])
        yield from _sizes(f"quantized/{number}", f"{GROUP}, {size} parameters", found["bytes"])


def _speeds(id: str, group: str, found: Mapping[str, Any]) -> Iterator[Figure]:
    for task, ways in found.items():
        plain = np.asarray(ways[PLAIN])
        for way, seconds in ways.items():
            if way == PLAIN:
                continue
            ours = np.asarray(seconds)
            least = FORMATS.get(way) if task == "decode" else None
            yield Figure(
                id=f"{id}/{task}/{way}",
                group=group,
                label=f"encrypted {way}, {TASKS[task]}",
                value=Summary.of(1 / ours) if task == "decode" else Summary.of(ours * 1e3),
                unit="tokens/s" if task == "decode" else "ms",
                reference=float(np.median(1 / plain if task == "decode" else plain * 1e3)),
                reference_label="plain bfloat16",
                ratio=Summary.of(plain / ours),
                target=None if least is None else Target(least),
            )


def _sizes(id: str, group: str, found: Mapping[str, float]) -> Iterator[Figure]:
    for way, nbytes in found.items():
        if way in FORMATS:
            yield Figure(
                id=f"{id}/bytes/{way}",
                group=group,
                label=f"encrypted {way}: bytes of all tensors",
                value=Summary.of(nbytes / found[PLAIN]),
                unit="x bfloat16",
                reference=found[PLAIN] / 2**20,
                reference_label="MiB of bfloat16",
                target=Target(TARGET_BYTES, of="value", at_least=False) if way == "q4_k" else None,
            )
