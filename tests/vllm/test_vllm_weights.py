# SPDX-License-Identifier: Apache-2.0
"""Encrypted weights in vLLM: logits are those of plain vLLM, no weight lies in memory, and what
could serve in the clear does not start."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace as Space
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vllm: make test-vllm", allow_module_level=True)

import secret_search
import torch
import vllm_support
from safetensors import safe_open
from support import child_environment
from vllm_support import MODELS, PROMPTS, answer, engine, furthest, make_model

import pyccmem
from pyccmem import errors
from pyccmem.directories import encrypt_directory
from pyccmem.torch import EncryptedTensor
from pyccmem.torch._tensor import ciphertext
from pyccmem.vllm import loader, proof, register, start, versions, weights
from pyccmem.vllm.method import PyccmemQuantization


def write_key(path: Path) -> None:
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models, plain and sealed, and the key file."""
    root = tmp_path_factory.mktemp("vllm")
    write_key(root / "key")
    with pyccmem.Key.from_file(root / "key") as key:
        for name in MODELS:
            make_model(name, root / name)
            encrypt_directory(root / name, root / f"{name}-sealed", key=key)
    return root


@pytest.fixture(autouse=True)
def _key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(folder / "key"))


def model_of(llm: Any) -> torch.nn.Module:
    found: list[torch.nn.Module] = llm.apply_model(lambda model: model)
    return found[0]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_plain_weights(folder: Path, name: str) -> None:
    with engine(folder / name) as llm:
        plain = answer(llm, PROMPTS)
    with engine(folder / name, quantization="pyccmem") as llm:
        assert furthest(plain, answer(llm, PROMPTS)) < 1e-3
    with engine(folder / f"{name}-sealed") as llm:
        assert furthest(plain, answer(llm, PROMPTS)) < 1e-3


def test_the_comparison_notices_other_weights(folder: Path) -> None:
    with engine(folder / "llama") as llm:
        plain = answer(llm, PROMPTS)
        with torch.no_grad():
            model_of(llm).model.norm.weight.mul_(1.01)
        assert furthest(plain, answer(llm, PROMPTS)) > 1e-2


def test_bfloat16_is_as_near_as_plain(folder: Path) -> None:
    with engine(folder / "llama", dtype="bfloat16") as llm:
        plain = answer(llm, PROMPTS)
    for directory, options in (("llama", {"quantization": "pyccmem"}), ("llama-sealed", {})):
        with engine(folder / directory, dtype="bfloat16", **options) as llm:
            assert furthest(plain, answer(llm, PROMPTS)) < 0.1


def test_sealed_weights_are_the_file(folder: Path) -> None:
    with engine(folder / "llama-sealed") as llm:
        found = loader.weights_of(model_of(llm))
        parts = {name: list(one) for name, one in found.items()}
        merged = parts["model.layers.0.self_attn.qkv_proj"]
        assert [tuple(part.shape) for part in merged] == [(128, 128), (64, 128), (64, 128)]
        for part in itertools.chain(*parts.values()):
            assert part.core.frozen or not part.core.writable
        left = [n for n, p in model_of(llm).named_parameters() if type(p.data) is torch.Tensor]
        assert all(model_of(llm).get_parameter(name).is_meta for name in left)


_CHILD = """
import sys, vllm_support
folder, options = sys.argv[1], eval(sys.argv[2])
with vllm_support.engine(folder, **options) as llm:
    vllm_support.answer(llm, vllm_support.PROMPTS, 2)
    print("ready", flush=True)
    sys.stdin.readline()
"""


def in_memory(folder: Path, options: dict[str, Any], needles: dict[str, bytes]) -> set[str]:
    environment = child_environment(VLLM_LOGGING_LEVEL="ERROR")
    script = f"import os\nos.environ.update({vllm_support.SETTINGS!r})\n" + _CHILD.replace(
        "with vllm", "sys.stdout, out = sys.stderr, sys.stdout\nwith vllm"
    ).replace('print("ready", flush=True)', 'print("ready", file=out, flush=True)')
    arguments = (str(folder), repr(options))
    with secret_search.child(script, *arguments, environment=environment) as pid:
        return {name for name, _ in secret_search.find(pid, needles)}


def test_no_weight_lies_in_memory(folder: Path) -> None:
    needles = {}
    for file in sorted((folder / "llama").glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict)
                values = tensors.get_tensor(name).flatten()[-48:-32]
                needles[name] = values.numpy().tobytes()
    matrices = {name for name in needles if "norm" not in name}
    assert len(needles) == 2 * 9 + 3
    assert in_memory(folder / "llama-sealed", {}, needles) == set()
    # vLLM takes matrices of some layers apart for its kernels, so not all look as in the file.
    twin = in_memory(folder / "llama", {}, needles)
    assert len(twin & matrices) >= 2 and len(twin - matrices) == 5


def test_no_weight_of_a_plain_directory_lies_in_memory_but_the_file(folder: Path) -> None:
    with safe_open(next((folder / "llama").glob("*.safetensors")), "pt") as tensors:
        name = next(n for n in tensors.keys() if "embed" in n or "proj" in n)  # noqa: SIM118
        needle = {name: tensors.get_tensor(name).flatten()[-48:-32].numpy().tobytes()}
    options = {"quantization": "pyccmem"}
    assert in_memory(folder / "llama", options, needle) == set()


# ---- what does not start -------------------------------------------------------------------------


def refused(folder: Path, kind: type[BaseException], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words), engine(folder, **options):
        pass


def test_without_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCCMEM_KEY_FILE")
    refused(folder / "llama-sealed", errors.InvalidKeyError, "PYCCMEM_KEY_FILE to a key file")


def test_with_another_key(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_key(tmp_path / "other")
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(tmp_path / "other"))
    refused(folder / "llama-sealed", errors.InvalidKeyError, "")


def test_of_another_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCCMEM_CONTEXT", '{"tenant": "a"}')
    refused(folder / "llama-sealed", errors.ContextError, "tenant=a is needed")
    monkeypatch.setenv("PYCCMEM_CONTEXT", "tenant=a")
    refused(folder / "llama-sealed", errors.ArgumentError, "JSON object")


def test_without_the_plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers import quantization

    register()
    monkeypatch.setattr(
        quantization,
        "QUANTIZATION_METHODS",
        [one for one in quantization.QUANTIZATION_METHODS if one != "pyccmem"],
    )
    refused(folder / "llama-sealed", ValueError, "pyccmem")


def test_plain_files_in_a_sealed_directory(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "llama-sealed/config.json").read_bytes())
    for file in (folder / "llama").glob("model*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    refused(tmp_path, errors.FileFormatError, "someone has put plain ones there")


def test_sealed_files_in_a_plain_directory(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "llama/config.json").read_bytes())
    for file in (folder / "llama-sealed").glob("model*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    refused(tmp_path, errors.FileFormatError, "does not say so", quantization="pyccmem")
    refused(tmp_path, Exception, "")  # plain vLLM finds no safetensors header


def test_layers_that_vllm_makes_without_asking(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    asked = PyccmemQuantization.get_quant_method

    def some(self: Any, layer: Any, prefix: str) -> Any:
        return UnquantizedLinearMethod() if "o_proj" in prefix else asked(self, layer, prefix)

    with engine(folder / "llama-sealed") as llm:
        wanted = answer(llm, PROMPTS)
    adopt = loader.adopt_layers
    monkeypatch.setattr(PyccmemQuantization, "get_quant_method", some)
    monkeypatch.setattr(loader, "adopt_layers", lambda model, config: None)
    refused(folder / "llama-sealed", errors.ArgumentError, "o_proj")

    def all_of_them(model: Any, config: Any) -> None:
        monkeypatch.setattr(PyccmemQuantization, "get_quant_method", asked)
        adopt(model, config)

    monkeypatch.setattr(loader, "adopt_layers", all_of_them)
    with engine(folder / "llama-sealed") as llm:
        assert furthest(wanted, answer(llm, PROMPTS)) < 1e-3
    monkeypatch.setattr(
        PyccmemQuantization, "get_quant_method", lambda *_: UnquantizedLinearMethod()
    )
    monkeypatch.setattr(
        "vllm.model_executor.layers.vocab_parallel_embedding.method_has_implemented_embedding",
        lambda _: True,
    )
    refused(folder / "llama-sealed", errors.ArgumentError, "without asking")


def test_a_loader_that_vllm_does_not_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor import model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    monkeypatch.setitem(model_loader._LOAD_FORMAT_TO_MODEL_LOADER, "auto", DefaultModelLoader)
    with (
        pytest.raises(errors.ClosedError, match="--load-format"),
        engine(folder / "llama", quantization="pyccmem") as llm,
    ):
        answer(llm, PROMPTS)


def test_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "TESTED", ("0.1.0",))
    refused(folder / "llama-sealed", errors.MissingPackageError, "tested with vLLM 0.1.0")


def test_options_that_were_not_tried() -> None:
    good = vllm_support.good_config()
    start.check_config(Space(**good))
    for name, value in (
        ("parallel_config", Space(pipeline_parallel_size=2)),
        ("speculative_config", Space()),
    ):
        with pytest.raises(errors.ArgumentError, match="was not tried"):
            start.check_config(Space(**{**good, name: value}))


def test_a_file_that_lacks_weights(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "llama/config.json").read_bytes())
    state: dict[str, torch.Tensor] = {}
    for file in (folder / "llama").glob("*.safetensors"):
        state |= load_file(file)
    del state["model.layers.1.self_attn.k_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    words = r"layers\.1\.self_attn\.qkv_proj"
    refused(tmp_path, errors.FileFormatError, words, quantization="pyccmem")


def end_of(llm: Any, prompt: list[int]) -> tuple[str, list[int]]:
    """Why a request ended, and its tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=3, temperature=0, detokenize=False, ignore_eos=True)
    (result,) = llm.generate(vllm_support.prompts_of([prompt]), sampling, use_tqdm=False)
    return result.outputs[0].finish_reason, list(result.outputs[0].token_ids)


def test_a_changed_page_fails_the_requests_that_need_it(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder / "llama-sealed", tmp_path / "model")
    prompt = [3 + n for n in range(50)]
    with engine(tmp_path / "model") as llm:
        reason, tokens = whole = end_of(llm, prompt)
        assert reason == "length" and len(tokens) == 3
        for name in (
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.1.mlp.down_proj.weight",
            "lm_head.weight",
        ):
            with vllm_support.damaged(tmp_path / "model", name):
                caplog.clear()
                assert end_of(llm, prompt) == ("error", [])
                assert f"buffer '{name}'" in caplog.text
            assert end_of(llm, prompt) == whole


def test_a_changed_row_of_an_embedding_fails_those_who_ask_for_it(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "llama-sealed", tmp_path / "model")
    with engine(tmp_path / "model") as llm:
        prompts = [[80, 200], [5, 6, 7], [90, 3]]  # a page has 8 rows
        plain = answer(llm, prompts, 1)
        with vllm_support.damaged(tmp_path / "model", "model.embed_tokens.weight", 11):
            assert end_of(llm, prompts[2]) == ("error", [])
            found = answer(llm, [prompts[0], prompts[1]], 1)
            assert furthest(plain[:2], found) < 1e-3
            found = together(llm, prompts)
            assert [reason for reason, _ in found] == ["length", "length", "error"]
            assert [tokens for _, tokens in found[:2]] == [tokens for tokens, _ in plain[:2]]


def together(llm: Any, prompts: list[list[int]]) -> list[tuple[str, list[int]]]:
    """The same of prompts that are computed in one step."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1, temperature=0, detokenize=False, ignore_eos=True)
    results = llm.generate(vllm_support.prompts_of(prompts), sampling, use_tqdm=False)
    return [(one.outputs[0].finish_reason, list(one.outputs[0].token_ids)) for one in results]


def test_a_changed_norm_fails_the_batch(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with engine(folder / "llama-sealed") as llm:
        whole = end_of(llm, [5, 6, 7])
        stored = ciphertext(model_of(llm).model.norm.weight)
        stored[9] ^= 1
        assert end_of(llm, [5, 6, 7]) == ("error", [])
        assert "model.norm.weight" in caplog.text
        stored[9] ^= 1
        assert end_of(llm, [5, 6, 7]) == whole


# ---- parts ---------------------------------------------------------------------------------------


def test_what_is_looked_at_at_the_start() -> None:
    def hidden(plain: bytes, lies: bytes) -> bool:
        as_tensor = [torch.tensor(list(one), dtype=torch.uint8) for one in (plain, lies)]
        return proof.is_hidden(*as_tensor)

    plain = bytes(range(64))
    assert hidden(plain, bytes(64))
    assert not hidden(plain, bytes(7) + plain[16:32])
    assert not hidden(plain, bytes(50) + plain[48:])
    assert not hidden(b"", bytes(64))
    assert not hidden(plain, b"")


def test_weights_of_a_layer() -> None:
    key = pyccmem.Key.generate()
    made = weights.LayerWeights("t", [2, 3], 4, torch.float32, lambda: key, lambda _, t: t)
    a, b = torch.randn(2, 4), torch.randn(3, 4)
    x, bias = torch.randn(5, 4), torch.randn(5)
    wanted = torch.nn.functional.linear(x, torch.cat([a, b]), bias)
    with pytest.raises(errors.ClosedError, match="before its weights were loaded"):
        made.linear(x, None)
    made.load(1, b)
    with pytest.raises(errors.FileFormatError, match=r"parts \[0\] of 2"):
        made.finish()
    made.load(0, a)
    made.finish()
    assert not a.any() and not b.any()  # overwritten
    assert torch.allclose(made.linear(x, bias), wanted, atol=1e-5)
    assert all(isinstance(part, EncryptedTensor) for part in made)
    with pytest.raises(errors.ArgumentError, match="it must have 4 columns"):
        made.load(0, torch.randn(2, 5))


def test_layers_of_two_models_stay_apart() -> None:
    key = pyccmem.Key.generate()
    tensors = [torch.randn(3, 4) for _ in range(2)]
    wanted = [tensor.clone() for tensor in tensors]
    made = []
    for tensor in tensors:
        one = weights.LayerWeights("same", [3], 4, torch.float32, lambda: key, lambda _, t: t)
        one.load(0, tensor)
        one.finish()
        made.append(one)
    x = torch.randn(2, 4)
    for one, matrix in zip(made, wanted, strict=True):
        found = weights.layer_linear(x, None, one.name, 3)
        assert torch.allclose(found, x @ matrix.T, atol=1e-5)
    names = [one.name for one in made]
    del made, one
    with pytest.raises(errors.ClosedError, match="no layer"):
        weights.find(names[1])


def test_register_may_be_repeated_and_needs_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    register()
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers", None)
    with pytest.raises(errors.MissingPackageError, match="needs vLLM"):
        register()


def test_a_changed_expert_fails_the_requests_that_chose_it(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder / "mixtral-sealed", tmp_path / "model")
    prompts = [[token] for token in range(3, 60)]
    with engine(tmp_path / "model") as llm:
        whole = together(llm, prompts)
        assert all(reason == "length" for reason, _ in whole)
        name = expert_of(tmp_path / "model")
        with vllm_support.damaged(tmp_path / "model", name):
            found = together(llm, prompts)
        failed = [reason for reason, _ in found].count("error")
        assert 0 < failed < len(prompts)
        assert all(a == b for a, b in zip(whole, found, strict=True) if b[0] != "error")
        assert f"buffer '{name}'" in caplog.text
        assert together(llm, prompts) == whole


def expert_of(folder: Path) -> str:
    """The name of a matrix of an expert in the first layer."""
    names: list[str] = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names += opened.keys()
    return min(name for name in names if ".layers.0." in name and ".experts." in name)
