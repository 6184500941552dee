# SPDX-License-Identifier: Apache-2.0
"""The benchmark of llama.cpp: random models have the weights that they are to have; a llama.cpp
that makes other tokens, or fails, is noticed; what is not installed is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyccmem.bench import ggml_model, llama
from pyccmem.bench.rounds import CheckError, Plan

SHAPE = ggml_model.Shape(2, 256, 512, 4, 2, 320)


@pytest.mark.parametrize("kind", ggml_model.KINDS)
def test_random_blocks_have_the_spread_of_weights(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    blocks = ggml_model.random_blocks(kind, 512, 1024, np.random.default_rng(1))
    values = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])
    assert values.shape == (512, 1024)
    assert abs(values.std() / ggml_model.SPREAD - 1) < 0.05
    assert abs(values.mean()) < 0.2 * ggml_model.SPREAD
    assert len(np.unique(blocks, axis=0)) == len(blocks)


def test_a_model_can_be_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    total = ggml_model.write(tmp_path / "m.gguf", "q4_k", SHAPE)
    tensors = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert len(tensors) == 3 + 9 * SHAPE.layers
    assert total == sum(tensor.n_bytes for tensor in tensors if len(tensor.shape) == 2)


class Made:
    """A llama.cpp that makes these tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = list(tokens)

    def make(self, count: int) -> tuple[float, list[int]]:
        return 0.01, self.tokens[:count]


def test_other_tokens_are_noticed() -> None:
    plain: Any = Made(*range(12))
    llama._check({"plain": plain, "ours": plain})
    later: Any = Made(*range(6), *[77] * 6)
    llama._check({"plain": plain, "ours": later})
    other: Any = Made(0, *[77] * 11)
    with pytest.raises(CheckError, match="other tokens"):
        llama._check({"plain": plain, "ours": other})


def test_a_llama_that_fails_is_told(tmp_path: Path) -> None:
    for package in ("llama_cpp", "xllamacpp"):
        with pytest.raises(CheckError, match=r"llama\.cpp failed: .+"):
            llama.Llama(package, tmp_path / "no model", 1, None)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here: set[str] = set()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in here else None)
    monkeypatch.delenv(llama.BACKEND, raising=False)
    for package, words in (
        ("", "neither llama-cpp-python nor xllamacpp"),
        ("xllamacpp", "gguf is not installed"),
        ("gguf", "need llama-cpp-python"),
        ("llama_cpp", llama.BACKEND),
    ):
        here.add(package)
        (reason,) = llama.missing()
        assert words in reason
    here.clear()
    assert list(llama.figures(Plan())) == []
