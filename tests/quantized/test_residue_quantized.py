# SPDX-License-Identifier: Apache-2.0
"""Quantisers and dequantisers leave nothing of weights on the stack, nor in registers that are
saved there; and one that does is found out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import native_build
import numpy as np
import pytest
import residue
from residue import Stack
from support import not_sanitized

import pyccmem
from pyccmem.binding import lib
from pyccmem.quantized import FORMATS, BlockFormat

pytestmark = not_sanitized

NONE = np.empty(0, np.uint8)
ELEMENTS = 512


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return Stack(residue.build(tmp_path_factory.mktemp("residue")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """All in the calling thread, on its stack."""
    before = pyccmem.get_num_threads()
    pyccmem.set_num_threads(1)
    yield
    pyccmem.set_num_threads(before)


def weights(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=ELEMENTS).astype(np.float32)


class Rooms:
    """Memory of one test, at the same place in each run."""

    def __init__(self, kind: BlockFormat) -> None:
        self.kind, self.count = kind, ELEMENTS // kind.elements
        self.floats = np.zeros(ELEMENTS, np.float32)
        self.blocks = np.zeros(self.count * kind.nbytes, np.uint8)
        self.scale = np.zeros(2, np.float32)

    def dequantize(self, call: Callable[..., Any], number: int) -> Any:
        self.blocks[:] = np.random.default_rng(number).integers(0, 256, self.blocks.size)
        self.floats[:] = 0
        done = call(
            "ccmem_blocks_dequantize", self.kind.native, self.blocks, self.count,
            self.floats.view(np.uint8),
        )  # fmt: skip
        assert self.floats.any()
        return done

    def quantize(self, call: Callable[..., Any], number: int) -> Any:
        self.floats[:], self.blocks[:] = weights(number), 0
        x = self.floats.view(np.uint8)
        if self.kind.scaled_rows:
            done = call(
                "ccmem_rows_quantize", x, 2, ELEMENTS // 2, self.blocks, self.scale.view(np.uint8)
            )
        else:
            done = call("ccmem_blocks_quantize", self.kind.native, x, self.count, self.blocks)
        assert self.blocks.any()
        return done


def left(call: Callable[..., Any], kind: BlockFormat, what: str) -> list[int]:
    rooms = Rooms(kind)

    def run(number: int) -> tuple[Any, Any]:
        status, found = getattr(rooms, what)(call, number)
        assert status == lib.CCMEM_OK
        return found, NONE

    return residue.leaks(run)


@pytest.mark.parametrize("kind", FORMATS.values(), ids=str)
@pytest.mark.parametrize("what", ["dequantize", "quantize"])
def test_nothing_is_left(stack: Stack, kind: BlockFormat, what: str) -> None:
    found = left(stack.call, kind, what)
    assert not found, f"{len(found)} words are left, at {found[:8]}"


@pytest.mark.parametrize("what", ["dequantize", "quantize"])
def test_what_leaves_its_frame_is_found(
    native_objects: dict[Path, Path], tmp_path: Path, stack: Stack, what: str
) -> None:
    """The control: the same without its wipes."""
    source = native_build.CSRC / "quant" / f"{what}.c"
    text = source.read_text(encoding="utf-8")
    for wipe in ("ccmem_wipe(", "burn_stack("):
        assert wipe in text
        text = text.replace(f"    {wipe}", f"    if (0) {wipe}")
    own = tmp_path / source.name
    own.write_text(text, encoding="utf-8")
    made = native_build.compile_objects([own], tmp_path, "-O3", "-fvisibility=default")[own]
    units = native_build.units({**native_objects, source: made}.values(), tmp_path)

    def call(name: str, *arguments: Any) -> Any:
        address = ctypes.cast(getattr(units, name), ctypes.c_void_p).value
        return stack.call_at(address, *arguments)

    assert left(call, FORMATS["q4_k"], what)
