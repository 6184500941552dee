# SPDX-License-Identifier: Apache-2.0
"""`pyccmem bench --only cache`: its parts measure what they say, with small sizes, and a wrong
result or an unreached target shows. What the speeds are is not tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyccmem import KVCache, get_num_threads, measure
from pyccmem.bench import cache, cache_memory, cache_plain, cache_shapes, plot, report
from pyccmem.bench.cache_shapes import Heads, Layers, Measured
from pyccmem.bench.rounds import CheckError, Plan

SMALL = Heads("small", 4, 2, 32)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes samples and working sets as short as they can be."""
    monkeypatch.setattr(cache_shapes, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(cache_shapes, "WORKING_SET", 1 << 16)
    before = get_num_threads()
    yield
    assert get_num_threads() == before


def test_layers_in_turn_make_a_working_set() -> None:
    layers = Layers(SMALL, "float32", 64)
    assert layers.count * (layers.k.nbytes + layers.v.nbytes) >= 1 << 16
    with layers.filled(KVCache) as made:
        assert made.layers == layers.count and made.length(layers.count - 1) == 64
        assert np.array_equal(made.read(layers.count - 1, "v"), layers.v)


def test_samples_are_seconds_of_a_call() -> None:
    """A subject that works twice as long takes longer, and every one of its calls is made."""
    called = [0, 0]

    def work(place: int, n: int) -> None:
        called[place] += 1
        sum(range(n))

    calls = {
        "short": [lambda: work(0, 20_000)],
        "long": [lambda: work(1, 200_000), lambda: work(1, 200_000)],
    }
    found = cache_shapes.in_turn(calls, 6, True)
    assert len(found["short"]) == len(found["long"]) == 6
    assert np.median(found["long"]) > 3 * np.median(found["short"])
    assert min(called) >= 12


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("rows", [1, 40])
def test_over_plain_pages(dtype: str, rows: int) -> None:
    found = list(cache_plain.measure_here(4, True, (1, 2), [(SMALL, dtype, 40, rows)]))
    assert [one.threads for one in found] == [1, 2]
    assert all(len(one.seconds) == len(one.reference) == 4 for one in found)
    assert all(min(one.seconds + one.reference) > 0 for one in found)


def test_a_wrong_attention_is_noticed() -> None:
    """Of one side, and of both."""
    layers = Layers(SMALL, "bfloat16", 40)
    with layers.filled(KVCache) as ours, layers.filled(measure.plain_cache) as plain:
        cache_plain._check(layers, ours, plain)
        plain.crop(39)
        with pytest.raises(CheckError, match="differ"):
            cache_plain._check(layers, ours, plain)
        ours.crop(39)
        with pytest.raises(CheckError, match="wrong"):
            cache_plain._check(layers, ours, plain)


def test_memory_and_erasing() -> None:
    found = cache_memory.memory(True, 1 << 22)
    assert 0.9 < found["bfloat16/stats"] < 1.5 and 0.4 < found["int8/stats"] < 0.9
    took = cache_memory.erase(True, 1 << 20)
    assert len(took) == cache_memory.ERASED[True] and min(took) > 0


def test_a_cache_that_is_not_erased_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "erase", lambda self: None)
    with pytest.raises(CheckError, match="still answers"):
        cache_memory.erase(True, 1 << 20)


# ---- against torch -------------------------------------------------------------------------------


def test_against_torch() -> None:
    cache_torch = pytest.importorskip("pyccmem.bench.cache_torch")
    cases = [(SMALL, "bfloat16"), (Heads("even", 3, 3, 32), "float32")]
    found = list(cache_torch.attention(4, True, (1, 2), cases, (100,)))
    assert [(one.task, one.heads, one.threads) for one in found] == [
        ("torch", "small", 1),
        ("int8", "small", 1),
        ("torch", "small", 2),
        ("int8", "small", 2),
        ("torch", "even", 1),
        ("torch", "even", 2),
    ]
    assert all(one.note in cache_torch.FORMS for one in found if one.task == "torch")
    appended = list(cache_torch.append(4, True, (1,), SMALL, 50, 2))
    assert appended[0].tokens == 50 and len(appended[0].seconds) == 4


def test_a_wrong_form_of_torch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_torch = pytest.importorskip("pyccmem.bench.cache_torch")
    forms = cache_torch.FORMS
    monkeypatch.setitem(forms, "packed", (lambda q, k, v: forms["enable_gqa"][0](q, v, k), False))
    with pytest.raises(CheckError, match="packed"):
        list(cache_torch.attention(4, True, (1,), [(SMALL, "float32")], (100,)))


def test_the_fastest_form_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that does all twice, the control, is not."""
    cache_torch = pytest.importorskip("pyccmem.bench.cache_torch")
    packed = cache_torch.FORMS["packed"][0]

    def slow(q: Any, k: Any, v: Any) -> Any:
        for _ in range(50):
            packed(q, k, v)
        return packed(q, k, v)

    monkeypatch.setattr(cache_torch, "FORMS", {"slow": (slow, False), "packed": (packed, False)})
    found = list(cache_torch.attention(4, True, (1,), [(SMALL, "float32")], (100,)))
    assert found[0].note == "packed"


# ---- tokens --------------------------------------------------------------------------------------

LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def test_tokens_after_a_context() -> None:
    cache_tokens = pytest.importorskip("pyccmem.bench.cache_tokens")
    found = list(cache_tokens.measure_here(4, True, (1, 2), LLAMA, (20, 50)))
    assert [(one.tokens, one.threads) for one in found] == [(20, 1), (20, 2), (50, 1), (50, 2)]
    assert all(min(one.seconds + one.reference) > 0 for one in found)


def test_another_context_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two caches has other keys, or is not used at all."""
    cache_tokens = pytest.importorskip("pyccmem.bench.cache_tokens")
    fill, step = cache_tokens._fill, cache_tokens._step

    def differently(caches: Any, config: Any, tokens: int) -> None:
        fill(caches[:1], config, tokens)
        for layer in range(config.num_hidden_layers):
            k = caches[0].layers[layer].keys
            caches[1].update(-3 * k, k, layer)

    with monkeypatch.context() as patched:
        patched.setattr(cache_tokens, "_fill", differently)
        with pytest.raises(CheckError, match="wrong"):
            list(cache_tokens.measure_here(4, True, (1,), LLAMA, (50,)))
    monkeypatch.setattr(
        cache_tokens, "_step", lambda model, cache: step(model, type(cache)(config=model.config))
    )
    with pytest.raises(CheckError, match="not used"):
        list(cache_tokens.measure_here(4, True, (1,), LLAMA, (50,)))


# ---- the table -----------------------------------------------------------------------------------


MEASURED = [
    Measured("torch", 1, "Llama-3-8B", "bfloat16", 1024, 1, [0.5] * 5, [2.0] * 5, "packed"),
    Measured("int8", 1, "Llama-3-8B", "bfloat16", 1024, 1, [0.4] * 5, [0.5] * 5),
    Measured("append", 1, "Llama-3-8B", "bfloat16", 8192, 1, [0.1] * 5, [1.0] * 5, "4 layers"),
    Measured("tokens", 1, "Llama", "bfloat16", 128, 1, [0.1] * 5, [0.2] * 5, "300 million"),
    Measured("tokens", 1, "Llama", "bfloat16", 1024, 1, [0.125] * 5, [0.25] * 5, "300 million"),
    Measured("plain-pages", 1, "Llama-3-8B", "float32", 8192, 1, [1.0] * 5, [0.5] * 5),
    Measured("plain-pages", 1, "Llama-3-8B", "bfloat16", 256, 256, [1.0] * 5, [1.0] * 5),
]


def _figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "torch": [dataclasses.asdict(one) for one in MEASURED[:2]],
        "append": [dataclasses.asdict(MEASURED[2])],
        "tokens": [dataclasses.asdict(one) for one in MEASURED[3:5]],
        "plain-pages": [dataclasses.asdict(one) for one in MEASURED[5:]],
        "memory": {"bfloat16/stats": 1.01, "int8/resident": 0.6},
        "erase": [0.0001, 0.0002, 0.0003],
    }
    monkeypatch.setattr(cache, "missing", lambda: ())
    monkeypatch.setattr(cache, "_child", lambda plan, task, counts: answers[task])
    found = list(cache.figures(Plan(rounds=5, quick=True)))
    assert len({one.id for one in found}) == len(found)
    return {one.label: one for one in found}


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _figures(monkeypatch)
    expected: dict[str, tuple[float, bool | None]] = {
        "attention: Llama-3-8B, bfloat16, 1,024 tokens": (4.0, True),
        "attention: Llama-3-8B, int8, 1,024 tokens": (1.25, None),
        "append: a token to 4 layers, Llama-3-8B, bfloat16, 8,192 tokens": (10.0, False),
        "attention: Llama-3-8B, float32, 8,192 tokens, time over plain pages": (2.0, False),
        "attention: Llama-3-8B, bfloat16, prompt of 256, time over plain pages": (1.0, True),
        "Llama, bfloat16, 300 million: tokens after 128": (2.0, True),
        "Llama, bfloat16, 300 million: tokens after 1,024": (2.0, None),
        "bfloat16, 256 MiB of plain bfloat16: memory by its own account": (1.01, True),
        "int8, 256 MiB of plain bfloat16: memory by the process's memory": (0.6, False),
        "erase() of 256 MiB": (0.2, True),
    }
    assert {label: (one.judged.median, one.reached) for label, one in found.items()} == {
        label: (pytest.approx(value), reached) for label, (value, reached) in expected.items()
    }


def test_the_plot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = list(_figures(monkeypatch).values())
    expected = [(128, pytest.approx(10), pytest.approx(5)), (1024, pytest.approx(8), 4)]
    assert cache.curves(found) == {1: expected}
    pytest.importorskip("matplotlib")
    plan = Plan(rounds=5, quick=True)
    document = report.document(plan, found, (), datetime.now(timezone.utc))
    for name, figures in (("all", found), ("none", [])):
        plot.draw(document, figures, tmp_path / f"{name}.svg")
    drawn = (tmp_path / "all.svg").read_text("utf-8")
    assert "tokens a second" in drawn
    assert "10.0   100 ms   (target 20)" in drawn  # a bar that is cut
    assert "2.00 of 1.3   1000 ms" in drawn  # longer than it may be
    assert "tokens a second" not in (tmp_path / "none.svg").read_text("utf-8")


def test_every_case_has_a_target() -> None:
    for heads, dtype, _, rows in cache_plain.CASES:
        assert (heads.name, dtype, rows > 1) in cache.TARGETS_PLAIN
