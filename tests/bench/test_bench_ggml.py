# SPDX-License-Identifier: Apache-2.0
"""ggml's own products, the reference of those with block-quantised matrices: they are what they
say they are, and where there is no ggml, there is a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pyccmem.bench import ggml
from pyccmem.bench.rounds import CheckError

SHAPE = (64, 512)


@pytest.fixture
def library() -> ggml.Ggml:
    found = ggml.find()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def forgetting() -> Iterator[None]:
    """Lets find() look again, before and after."""
    ggml.find.cache_clear()
    yield
    ggml.find.cache_clear()


def exact(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns W and x of small whole numbers, which the format and the 8 bits of x hold exactly:
    each block has the number whose scale is 1."""
    generator = np.random.default_rng(5)
    largest = {"q8_0": 127, "q4_0": -8}[kind]
    matrix = generator.integers(-7, 8, SHAPE).astype(np.float32)
    matrix[:, ::32] = largest
    x = generator.integers(-9, 10, (3, SHAPE[1])).astype(np.float32)
    x[:, 1::32] = 127
    return matrix, x


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("repacked", [False, True])
def test_the_product_is_that_of_the_matrix(
    library: ggml.Ggml, kind: str, threads: int, repacked: bool
) -> None:
    matrix, x = exact(kind)
    made = ggml.product(kind, library.quantize(kind, matrix), x, threads=threads, repacked=repacked)
    if isinstance(made, str):
        assert repacked and "does not repack" in made
        pytest.skip(made)
    with made:
        assert made.seconds() > 0
        assert np.array_equal(made.result(), x @ matrix.T)


def test_a_changed_block_changes_the_product(library: ggml.Ggml) -> None:
    matrix, x = exact("q8_0")
    blocks = library.quantize("q8_0", matrix)
    blocks[7, 2] ^= 1
    made = ggml.product("q8_0", blocks, x)
    assert isinstance(made, ggml.Product)
    with made:
        made.seconds()
        differs = made.result() != x @ matrix.T
    assert differs[:, 7].all() and not np.delete(differs, 7, axis=1).any()


def test_k_blocks_too(library: ggml.Ggml) -> None:
    generator = np.random.default_rng(6)
    matrix, x = (generator.standard_normal(s, dtype=np.float32) for s in (SHAPE, (1, SHAPE[1])))
    made = ggml.product("q4_k", library.quantize("q4_k", matrix), x)
    assert isinstance(made, ggml.Product)
    with made:
        made.seconds()
        error = np.linalg.norm(made.result() - x @ matrix.T) / np.linalg.norm(x @ matrix.T)
    assert error < 0.15


def test_wrong_arguments_are_told(library: ggml.Ggml) -> None:
    blocks, x = np.zeros((4, 34), np.uint8), np.zeros((1, 64), np.float32)
    with pytest.raises(CheckError, match="64 q8_0 elements does not take 34 bytes"):
        ggml.product("q8_0", blocks, x)
    found = ggml.product("q9_z", blocks, x)
    assert isinstance(found, str) and "no format q9_z" in found


@pytest.mark.usefixtures("forgetting")
def test_what_is_no_ggml_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ggml.VARIABLE, str(tmp_path / "libggml.so"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = ggml.find()
    assert isinstance(found, str) and "libggml.so" in found
    monkeypatch.delenv(ggml.VARIABLE)
    ggml.find.cache_clear()
    found = ggml.product("q8_0", np.zeros((1, 34), np.uint8), np.zeros((1, 32), np.float32))
    assert isinstance(found, str) and "neither llama-cpp-python nor xllamacpp" in found
