# SPDX-License-Identifier: Apache-2.0
"""Stock llama.cpp with the ggml backend: a small random Llama gives the logits that it gives
without, its weights are not in the process's memory, and changes of them fail the request."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ggml_graphs import BACKEND, DECODE, path_of

from pyccmem import audit
from pyccmem.bench import ggml_model

gguf = pytest.importorskip("gguf")

SHAPE = ggml_model.Shape(2, 256, 512, 4, 2, 512)
KINDS = ("q8_0", "q4_k")

Start = Callable[..., "Decoder"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        ggml_model.write(folder / kind, kind, SHAPE)
    return {kind: folder / kind for kind in KINDS}


class Decoder:
    """A process of tests/ggml/decode.c."""

    def __init__(
        self,
        model: Path,
        protected: bool,
        forced: bool,
        threads: int,
        mode: str,
        guarded: bool,
        products: str,
    ) -> None:
        command = [str(path_of(DECODE)), str(model), str(threads), mode, *["pyccmem"] * forced]
        if guarded:  # debuggable: so that its memory can be searched
            command = [sys.executable, "-m", "pyccmem", "run", "--debuggable", "--", *command]
        environment = {name: value for name, value in os.environ.items() if "GGML" not in name}
        if protected:
            environment["GGML_BACKEND_PATH"] = str(path_of(BACKEND))
            environment["PYCCMEM_GGML_PRODUCTS"] = products
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, command: str, *words: object) -> str:
        assert self.process.stdin
        print(command, *words, file=self.process.stdin, flush=True)
        return self.answer()

    def logits(self, tokens: list[int], command: str = "tokens") -> np.ndarray:
        numbers = np.array(self.ask(command, *tokens).split(), dtype=float)
        assert numbers.shape == (SHAPE.vocabulary,)
        return numbers

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def make(
            model: Path,
            *,
            protected: bool = True,
            forced: bool = True,
            threads: int = 2,
            mode: str = "mmap",
            guarded: bool = False,
            products: str = "",
        ) -> Decoder:
            forced = protected and forced
            made = Decoder(model, protected, forced, threads, mode, guarded, products)
            stack.callback(made.close)
            return made

        yield make


def prompt(length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(length).integers(3, 500, length)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_stock_llama(
    models: dict[str, Path], kind: str, start: Start
) -> None:
    plain = start(models[kind], protected=False)
    ours = start(models[kind])
    by_itself = start(models[kind], forced=False)
    same = start(models[kind], products="ggml")
    for length in (1, 7, 100):
        expected = plain.logits(prompt(length))
        assert expected.std() > 0.1
        got = ours.logits(prompt(length))
        # Both round x to 8 bits, each in its own way; other tokens are another result.
        assert np.linalg.norm(got - expected) < 0.03 * np.linalg.norm(expected)
        assert np.array_equal(by_itself.logits(prompt(length)), got)
        got = same.logits(prompt(length))
        if length < 10:
            assert np.array_equal(got, expected)
        else:  # llama.cpp multiplies many rows by other kernels
            assert np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)
    other = plain.logits(prompt(101))
    assert np.linalg.norm(other - expected) > 0.3 * np.linalg.norm(expected)


def samples_of(model: Path) -> audit.Samples:
    """Returns places all over the weights, norms included."""
    parts = {}
    for tensor in gguf.GGUFReader(model).tensors:
        data = tensor.data.tobytes()
        step = max(len(data) // 50, 64)
        parts |= {f"{tensor.name} {at}": data[at : at + 64] for at in range(0, len(data), step)}
    return audit.samples_from_parts(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_in_memory(models: dict[str, Path], kind: str, start: Start) -> None:
    samples, found = samples_of(models[kind]), {}
    for protected in (False, True):
        decoder = start(models[kind], protected=protected, mode="none", guarded=protected)
        decoder.logits(prompt(20))
        decoder.logits(prompt(1))
        found[protected] = audit.scan(decoder.process.pid, samples)
    assert found[False].found > 0.9 * found[False].samples
    assert found[True].clean, found[True].places


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_mapped_file_a_page_is_left(models: dict[str, Path], kind: str, start: Start) -> None:
    # llama.cpp unmaps whole pages, so the one in which the file ends stays.
    model = models[kind]
    samples, found = samples_of(model), {}
    for protected in (False, True):
        decoder = start(model, protected=protected)
        decoder.logits(prompt(20))
        found[protected] = audit.scan(decoder.process.pid, samples)
    assert found[False].found > 0.9 * found[False].samples
    for place in found[True].places:
        assert (place.mapping, place.end - place.start) == (str(model), 4096)


def test_a_changed_weight_fails_the_request(models: dict[str, Path], start: Start) -> None:
    decoder = start(models["q4_k"])
    expected = decoder.logits(prompt(9))
    for name in ("blk.1.ffn_down.weight", "blk.0.attn_norm.weight", "output.weight"):
        assert decoder.ask("flip", name) == "flipped"
        assert decoder.ask("tokens", *prompt(9)) == "failed -3"
        assert decoder.ask("flip", name) == "flipped"
        assert np.array_equal(decoder.logits(prompt(9)), expected)


def test_two_contexts_at_once(models: dict[str, Path], start: Start) -> None:
    decoder = start(models["q8_0"])
    expected = decoder.logits(prompt(30))
    assert np.array_equal(decoder.logits(prompt(30), "both"), expected)


def test_a_forked_child_fails_and_the_parent_goes_on(models: dict[str, Path], start: Start) -> None:
    # With one thread: OpenMP's threads, which ggml uses, are not there in a child.
    plain = start(models["q8_0"], protected=False, threads=1)
    assert np.array_equal(plain.logits(prompt(5), "fork"), plain.logits(prompt(5)))
    decoder = start(models["q8_0"], threads=1)
    expected = decoder.logits(prompt(5))
    assert decoder.ask("fork", *prompt(5)) == "failed -3"
    assert np.array_equal(decoder.logits(prompt(5)), expected)


def test_the_end_is_clean(models: dict[str, Path], start: Start) -> None:
    decoder = start(models["q8_0"])
    decoder.logits(prompt(5))
    _, errors = decoder.process.communicate("free\n", timeout=60)
    assert decoder.process.returncode == 0
    assert errors == ""


def test_without_the_backend_its_buffer_type_is_refused(models: dict[str, Path]) -> None:
    command = [str(path_of(DECODE)), str(models["q8_0"]), "1", "mmap", "pyccmem"]
    environment = {name: value for name, value in os.environ.items() if "GGML" not in name}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, input="", timeout=60
    )
    assert done.returncode == 2
    assert "there is no such buffer type" in done.stderr
