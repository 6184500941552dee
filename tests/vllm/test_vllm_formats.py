# SPDX-License-Identifier: Apache-2.0
"""Weights of few bits in vLLM: sealed so, or turned into blocks while they are loaded. Scores are
those of plain vLLM with the weights that the blocks stand for."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vllm: make test-vllm", allow_module_level=True)

import torch
from safetensors.torch import load_file, save_file
from vllm_support import PROMPTS, answer, damaged, engine, furthest, make_model

import pyccmem
from pyccmem import errors
from pyccmem.directories import encrypt_directory
from pyccmem.vllm.method import QUANTIZE

FORMATS = ("q8_0", "q4_k", "int8_row")

#: How far scores may lie apart: a product with blocks rounds x to 8 bits.
NEAR = 0.4


def as_blocks(plain: Path, folder: Path, format: str) -> None:
    """Writes a plain model whose weights are those that blocks of this format stand for."""
    shutil.copytree(plain, folder)
    with pyccmem.Key.generate() as key:
        for file in folder.glob("*.safetensors"):
            state = load_file(file)
            for name, tensor in state.items():
                if tensor.dim() == 2:
                    blocks = pyccmem.EncryptedTensor.from_numpy(
                        tensor.numpy(), key=key, dtype=format
                    )
                    state[name] = torch.from_numpy(blocks.dequantize())
            save_file(state, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vllm")
    (root / "key").write_bytes(os.urandom(32))
    (root / "key").chmod(0o600)
    # q4_k has blocks of 256.
    make_model("llama", root / "plain", hidden_size=256, intermediate_size=512, head_dim=64)
    with pyccmem.Key.from_file(root / "key") as key:
        for format in FORMATS:
            encrypt_directory(root / "plain", root / format, key=key, quantize=format)
            as_blocks(root / "plain", root / f"{format}-values", format)
    return root


@pytest.fixture(autouse=True)
def _key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(folder / "key"))


def formats_of(llm: Any) -> set[str]:
    """The block formats of all matrices."""

    def look(model: Any) -> set[str]:
        return {
            part.format
            for module in model.modules()
            if hasattr(module, "pyccmem_weights")
            for part in module.pyccmem_weights
        }

    found: set[str] = llm.apply_model(look)[0]
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_scores_are_those_of_the_blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    with engine(folder / f"{format}-values") as llm:
        plain = answer(llm, PROMPTS)
    with engine(folder / format) as llm:
        assert formats_of(llm) == {format}
        sealed = answer(llm, PROMPTS)
    monkeypatch.setenv(QUANTIZE, format)
    with engine(folder / "plain", quantization="pyccmem") as llm:
        assert formats_of(llm) == {format}
        loaded = answer(llm, PROMPTS)
    assert furthest(plain, sealed) < NEAR and furthest(sealed, loaded) < 1e-3


def test_the_comparison_notices_other_weights(folder: Path) -> None:
    with engine(folder / "q8_0-values") as llm:
        plain = answer(llm, PROMPTS)
    with engine(folder / "q4_k") as llm, pytest.raises(AssertionError):
        assert furthest(plain, answer(llm, PROMPTS)) < NEAR


def test_a_changed_block_fails_the_request(folder: Path, tmp_path: Path) -> None:
    from vllm import SamplingParams, TokensPrompt

    shutil.copytree(folder / "q4_k", tmp_path / "model")
    with engine(tmp_path / "model") as llm:

        def end() -> Any:
            sampling = SamplingParams(max_tokens=2, temperature=0, detokenize=False)
            prompt = TokensPrompt(prompt_token_ids=[5, 6, 7])
            (result,) = llm.generate(prompt, sampling, use_tqdm=False)
            return result.outputs[0].finish_reason, list(result.outputs[0].token_ids)

        whole = end()
        with damaged(tmp_path / "model", "model.layers.1.mlp.down_proj.weight"):
            assert end() == ("error", [])
        assert end() == whole


def test_formats_by_names_and_what_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(QUANTIZE, "lm_head*=q8_0,model.embed*=none,*=q4_k")
    with (
        pytest.raises(errors.ArgumentError, match="none"),
        engine(folder / "plain", quantization="pyccmem"),
    ):
        pass
    monkeypatch.setenv(QUANTIZE, "q4_k,*=q8_0")
    with (
        pytest.raises(errors.ConfigError, match="twice what \\* becomes"),
        engine(folder / "plain", quantization="pyccmem"),
    ):
        pass
    monkeypatch.setenv(QUANTIZE, " lm_head* = q8_0, *proj*=q4_k,")
    with engine(folder / "plain", quantization="pyccmem") as llm:
        assert formats_of(llm) == {"q8_0", "q4_k", None}
        assert answer(llm, PROMPTS)
    with (
        pytest.raises(errors.ConfigError, match="pyccmem encrypt --quantize"),
        engine(folder / "q8_0"),
    ):
        pass


def test_rows_that_are_no_blocks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model("llama", tmp_path / "plain")  # rows of 128 and 192; q4_k has blocks of 256
    monkeypatch.setenv(QUANTIZE, "q4_k")
    with (
        pytest.warns(errors.FormatWarning, match="no whole number of blocks of q4_k.* q8_0"),
        engine(tmp_path / "plain", quantization="pyccmem") as llm,
    ):
        assert formats_of(llm) == {"q8_0"}
