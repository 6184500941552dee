# SPDX-License-Identifier: Apache-2.0
"""Claim 9: attention over an encrypted key-value cache, against torch's over plain keys and values.

    torch        one row of q over 1,024 tokens and more, with the heads of Llama-3-8B and MiniLM,
                 against scaled_dot_product_attention in the form that is fastest here; int8 against
                 bfloat16, both encrypted
    plain pages  the same, and prompts, over a cache that encrypts nothing: what the cipher costs
    append       one token to all layers, against transformers' DynamicCache
    tokens       a Llama whose weights and cache are encrypted, against the plain one
    erase        a cache destroyed, whatever its size
    memory       what a cache takes, by its own account and by the process's

K and V of enough layers to fill a processor's caches several times take turns, as in a model. The
parts are measured in new processes (cache_child.py), each with one thread and with two.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .cache_memory import SIZE
from .cache_shapes import LLAMA, MULTI, Measured
from .children import child
from .rounds import Figure, Plan, Samples, Summary, Target
from .threads import cores

GROUP = "key-value cache"

#: The packages that what is compared with torch needs.
PACKAGES = ("torch", "transformers", "ml_dtypes")

#: Least speed as a multiple of torch's, by type.
TARGETS_TORCH = {"bfloat16": 2.5, "float32": 2.0}

#: The most time as a multiple of that over plain pages, by heads, type and whether it is a prompt.
TARGETS_PLAIN = {
    (LLAMA.name, "bfloat16", False): 1.7,
    (LLAMA.name, "float32", False): 1.3,
    (MULTI.name, "bfloat16", False): 1.2,
    (LLAMA.name, "bfloat16", True): 1.05,
}

TARGET_APPEND = 20.0  # times as fast as DynamicCache
#: Least tokens a second as a multiple of the plain model's, by tokens before.
TARGETS_TOKENS = {128: 1.2, 2048: 1.5, 16384: 3.0}

TARGET_ERASE = 1.0  # ms
TARGETS_MEMORY = {"bfloat16": 1.02, "int8": 0.55}  # times plain bfloat16

ACCOUNTS = {"stats": "by its own account", "resident": "by the process's memory"}


def missing() -> tuple[str, ...]:
    """Returns what cannot be measured because a package is missing."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not absent:
        return ()
    return (f"caches against torch: {', '.join(absent)} is not installed.",)


def figures(plan: Plan) -> Iterator[Figure]:
    counts = (1, 2)[: cores()]
    found: list[Measured] = []
    for task in ("torch", "append", "tokens", "plain-pages"):
        if task != "plain-pages" and missing():
            continue
        plan.progress(f"{GROUP}: {task}")
        found += [Measured(**fields) for fields in _child(plan, task, counts)]
    for threads in counts:
        group = f"{GROUP}, {'one thread' if threads == 1 else f'{threads} threads'}"
        for one in found:
            if one.threads == threads:
                yield _figure(plan, group, one)
    yield from _memory(plan, counts)


def _child(plan: Plan, task: str, counts: Sequence[int]) -> Any:
    return child("cache_child", GROUP, counts[-1], task, plan.rounds, int(plan.quick), *counts)


def _figure(plan: Plan, group: str, one: Measured) -> Figure:
    if one.task == "tokens":
        return _tokens(plan, group, one)
    ours: Samples = np.asarray(one.seconds)
    reference: Samples = np.asarray(one.reference)
    tokens = f"{one.tokens:,} tokens"
    label = f"{one.heads}, {one.dtype}, {tokens}"
    ratio = Summary.of(reference / ours)
    target: Target | None = None
    if one.task == "torch":
        label, against = f"attention: {label}", "torch's SDPA"
        target = Target(TARGETS_TORCH[one.dtype])
    elif one.task == "int8":
        label, against = f"attention: {one.heads}, int8, {tokens}", f"{one.dtype}, encrypted"
    elif one.task == "append":
        label, against = f"append: a token to {one.note}, {label}", "DynamicCache"
        target = Target(TARGET_APPEND)
    else:
        prompt = one.rows > 1
        label = f"attention: {one.heads}, {one.dtype}, "
        label += f"prompt of {one.rows:,}" if prompt else tokens
        label, against = f"{label}, time over plain pages", "plain pages"
        ratio = Summary.of(ours / reference)
        limit = TARGETS_PLAIN[one.heads, one.dtype, prompt]
        target = Target(limit, at_least=False)
    return Figure(
        id=_id(one),
        group=group,
        label=label,
        value=Summary.of(ours * 1e3),
        unit="ms",
        reference=float(np.median(reference)) * 1e3,
        reference_label=against,
        ratio=ratio,
        target=target,
        note="; ".join([*([one.note] if one.task == "torch" else []), *_fewer(plan, one)]),
    )


def _id(one: Measured) -> str:
    heads = one.heads.replace(" ", "-")
    return f"cache/{one.threads}/{one.task}/{heads}/{one.dtype}/{one.tokens}/{one.rows}"


def _fewer(plan: Plan, one: Measured) -> list[str]:
    """Returns how many rounds there were, if not all."""
    return [] if len(one.seconds) == plan.rounds else [f"{len(one.seconds)} rounds"]


def _tokens(plan: Plan, group: str, one: Measured) -> Figure:
    ours: Samples = np.asarray(one.seconds)
    reference: Samples = np.asarray(one.reference)
    limit = TARGETS_TOKENS.get(one.tokens)
    return Figure(
        id=_id(one),
        group=group,
        label=f"{one.heads}, {one.dtype}, {one.note}: tokens after {one.tokens:,}",
        value=Summary.of(1 / ours),
        unit="tokens/s",
        reference=float(1 / np.median(reference)),
        reference_label="plain",
        ratio=Summary.of(reference / ours),
        target=None if limit is None else Target(limit),
        note="; ".join(_fewer(plan, one)),
    )


def curves(figures: Sequence[Figure]) -> dict[int, list[tuple[int, float, float]]]:
    """Returns the curves for the plot, by number of threads: tokens before, and tokens a second,
    encrypted and plain."""
    found: dict[int, list[tuple[int, float, float]]] = {}
    for figure in figures:
        group, *parts = figure.id.split("/")
        if group == "cache" and len(parts) > 2 and parts[1] == "tokens" and figure.reference:
            point = (int(parts[4]), figure.value.median, figure.reference)
            found.setdefault(int(parts[0]), []).append(point)
    return found


def _memory(plan: Plan, counts: Sequence[int]) -> Iterator[Figure]:
    group = f"{GROUP}: memory and erasing"
    size = SIZE[plan.quick]
    plan.progress(group)
    for name, share in _child(plan, "memory", counts).items():
        dtype, account = name.split("/")
        yield Figure(
            id=f"cache/memory/{name}",
            group=group,
            label=f"{dtype}, {size >> 20} MiB of plain bfloat16: memory {ACCOUNTS[account]}",
            value=Summary.of(share),
            unit="x plain",
            reference=size / 2**20,
            reference_label="MiB plain",
            target=Target(TARGETS_MEMORY[dtype], of="value", at_least=False),
        )
    yield Figure(
        id="cache/erase",
        group=group,
        label=f"erase() of {size >> 20} MiB",
        value=Summary.of(np.asarray(_child(plan, "erase", counts)) * 1e3),
        unit="ms",
        target=Target(TARGET_ERASE, of="value", at_least=False),
    )
