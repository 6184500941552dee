# SPDX-License-Identifier: Apache-2.0
"""What a type checker knows of `stats()` and of index expressions is what they return."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import counters

ROWS = np.arange(24, dtype=np.float32).reshape(4, 6)


def must_be(found: Any, declared: Any) -> None:
    """The names in their order, and a value of the type of each."""
    hints = get_type_hints(declared)
    assert set(found) == set(hints)
    for name, kind in hints.items():
        assert isinstance(found[name], kind), name


def test_what_stats_returns(key: pyccmem.Key) -> None:
    with pyccmem.EncryptedTensor.from_numpy(ROWS, key=key) as tensor:
        must_be(tensor.buffer.stats(), counters.BufferStats)
        must_be(pyccmem.stats(), counters.ProcessStats)
    with pyccmem.KVCache(layers=1, heads=1, key_size=16) as cache:
        must_be(cache.stats(), counters.CacheStats)
    with pyccmem.EncryptedTensor.zeros((1 << 16,), np.uint8, key=key) as tensor:
        mapping = tensor.map()
        with mapping:
            must_be(mapping.stats(), counters.MappingStats)


def test_the_budget_is_told(key: pyccmem.Key) -> None:
    assert pyccmem.get_plaintext_budget() is None
    pyccmem.set_plaintext_budget("1GiB")
    try:
        assert pyccmem.stats()["plaintext_budget"] == pyccmem.get_plaintext_budget() == 1 << 30
    finally:
        pyccmem.set_plaintext_budget(None)


def test_another_counter_is_told() -> None:
    """The control."""
    with pytest.raises(AssertionError):
        must_be({"reads": 1}, counters.BufferStats)
    whole = dict.fromkeys(get_type_hints(counters.BufferStats), 1)
    must_be(whole, counters.BufferStats)
    with pytest.raises(AssertionError):
        must_be({**whole, "reads": "1"}, counters.BufferStats)


CHECKED = """
from typing import Any, assert_type
import numpy as np
import numpy.typing as npt
import pyccmem
from pyccmem.counters import BufferStats

def use(t: pyccmem.EncryptedTensor, q: pyccmem.QuantizedTensor, rows: npt.NDArray[np.intp]) -> None:
    assert_type(t[1:3], npt.NDArray[Any])
    assert_type(t[...], npt.NDArray[Any])
    assert_type(t[rows], npt.NDArray[Any])
    assert_type(t[[1, 2]], npt.NDArray[Any])
    assert_type(t[0, 1:3], npt.NDArray[Any])
    assert_type(t["name"], npt.NDArray[Any])
    assert_type(t[0], Any)
    assert_type(t[0, 1], Any)
    assert_type(q[1:3], npt.NDArray[np.float32])
    assert_type(t.buffer.stats(), BufferStats)
    assert_type(t.buffer.stats()["reads"], int)
    assert_type(pyccmem.stats()["plaintext_budget"], int | None)
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("", ""),
        ("    t[1.5]\n", "No overload variant"),
        ("    t.buffer.stats()['raeds']\n", "has no key"),
        ("    assert_type(t[1:3], Any)\n", "Expression is of type"),
    ],
    ids=["right", "an index", "a counter", "a type"],
)
@pytest.mark.full
def test_what_mypy_says(line: str, wrong: str, tmp_path: Path) -> None:
    script = tmp_path / "use.py"
    script.write_text(CHECKED + line, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.11", str(script)],
        cwd=support.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode == 0) is (not wrong), done.stdout + done.stderr
    assert wrong in done.stdout
