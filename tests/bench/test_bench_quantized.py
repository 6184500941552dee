# SPDX-License-Identifier: Apache-2.0
"""The benchmark of quantised blocks: what it measures, and which targets its lines have."""

from __future__ import annotations

from typing import Any

import pytest

from pyccmem.bench import block_products, children
from pyccmem.bench.rounds import CheckError, Plan


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_products, "SHAPES", {(128, 256): (1, 3), (64, 512): (1,)})
    monkeypatch.setattr(block_products, "cores", lambda: 1)

    def here(name: str, what: str, threads: int, *words: Any) -> list[dict[str, Any]]:
        assert name == "block_products_child" and threads == 1
        return block_products.measure_here(words[0], words[1], words[2])

    monkeypatch.setattr(children, "child", here)


@pytest.mark.usefixtures("small")
def test_lines() -> None:
    figures = list(block_products.figures(Plan(rounds=2, quick=True)))
    names = {figure.id: figure for figure in figures}
    kinds = 2 * len(block_products.FORMATS) + len(block_products.SEVERAL)
    assert len([name for name in names if name.endswith("/numpy")]) == kinds
    line = names["quantized/1/128x256/q4_k/1/numpy"]
    assert line.target is not None and line.target.limit == 3.0
    assert line.ratio is not None and line.value.median > 0
    assert names["quantized/1/128x256/q4_k/3/numpy"].target is None
    assert names["quantized/1/64x512/int8_g128/1/numpy"].target is None
    if not block_products.missing():
        plain = names["quantized/1/128x256/q8_0/1/ggml"]
        assert plain.target is not None and plain.target.limit == 0.8


@pytest.mark.usefixtures("small")
def test_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        block_products, "linear", lambda x, weight: (x @ weight.dequantize().T) * 1.03
    )
    with pytest.raises(CheckError, match="the result is wrong"):
        block_products.measure_here("aegis-128x2", 1, 1)
