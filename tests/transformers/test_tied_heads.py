# SPDX-License-Identifier: Apache-2.0
"""Output embeddings that are tied and have a bias, to which transformers assigns a padded one, and
embeddings that are resized: loaded sealed and while encrypting, saved, encrypted in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers as stock

import pyccmem.torch
import pyccmem.transformers
from pyccmem import Key
from pyccmem.directories import encrypt_directory
from pyccmem.torch import EncryptedTensor
from pyccmem.transformers import PyccmemConfig, using_key

IDS = torch.arange(3, 15)[None]

_SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_TOKENS = {
    f"{name}_token_id": number % 3 for number, name in enumerate(("pad", "bos", "eos", "cls"))
}

#: Models, each with its config and what that has beside the sizes.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForMaskedLM": ("BertConfig", {}),
    "BertForPreTraining": ("BertConfig", {}),
    "BertLMHeadModel": ("BertConfig", {"is_decoder": True}),
    "RobertaForMaskedLM": ("RobertaConfig", {}),
    "XLMRobertaForMaskedLM": ("XLMRobertaConfig", {}),
    "DistilBertForMaskedLM": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 48},
    ),
    "ModernBertForMaskedLM": ("ModernBertConfig", {**_TOKENS, "sep_token_id": 2}),
    "AlbertForMaskedLM": ("AlbertConfig", {"embedding_size": 16}),
    "ElectraForMaskedLM": ("ElectraConfig", {"embedding_size": 16}),
    "MPNetForMaskedLM": ("MPNetConfig", {}),
    "DebertaV2ForMaskedLM": ("DebertaV2Config", {}),
    "PhiForCausalLM": ("PhiConfig", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(pyccmem.transformers.KEY_FILE_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with torch.no_grad():
        yield


def made(name: str) -> Any:
    """The model with random weights; its bias too, which is zeros by default."""
    config, options = MODELS[name]
    sizes = _SIZES if config != "DistilBertConfig" else {"vocab_size": 60}
    torch.manual_seed(4)
    model = getattr(stock, name)(getattr(stock, config)(**{**sizes, **options})).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) / 20)
    return model


def scores(model: Any) -> torch.Tensor:
    result = model(input_ids=IDS)
    return result.logits if hasattr(result, "logits") else result.prediction_logits


def all_encrypted(model: Any) -> None:
    for name, tensor in model.named_parameters():
        assert isinstance(tensor, EncryptedTensor), name


@pytest.mark.parametrize("name", MODELS)
def test_tied_heads_with_a_bias(tmp_path: Path, key: Key, name: str) -> None:
    plain = made(name)
    wanted = scores(plain)
    plain.save_pretrained(tmp_path / "plain")
    encrypt_directory(tmp_path / "plain", tmp_path / "sealed", key=key)
    kind = type(plain)
    with using_key(key):
        sealed = kind.from_pretrained(tmp_path / "sealed")
        sealed.save_pretrained(tmp_path / "again")
        again = kind.from_pretrained(tmp_path / "again")
    opened = sum(
        t.core.buffer.stats()["pages_opened"]
        for t in kind.from_pretrained(
            tmp_path / "sealed", quantization_config=PyccmemConfig(key=key)
        ).parameters()
    )
    assert opened == 0, "loading a sealed model opens nothing, its bias neither"
    encrypting = kind.from_pretrained(
        tmp_path / "plain", quantization_config=PyccmemConfig(key=key)
    )
    in_place = pyccmem.torch.encrypt_module(copy.deepcopy(plain), key=key)
    in_place.tie_weights()
    for model in (sealed, again, encrypting, in_place):
        all_encrypted(model)
        torch.testing.assert_close(scores(model.eval()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [70, 40])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "PhiForCausalLM", "RobertaForMaskedLM"])
def test_resized_embeddings(key: Key, name: str, tied: bool, size: int) -> None:
    config, options = MODELS[name]
    torch.manual_seed(5)
    settings = {**_SIZES, **options, "tie_word_embeddings": tied}
    plain = getattr(stock, name)(getattr(stock, config)(**settings)).eval()
    model = pyccmem.torch.encrypt_module(copy.deepcopy(plain), key=key)
    for one in (plain, model):
        one.resize_token_embeddings(size, mean_resizing=False)
    all_encrypted(model)
    assert model.get_input_embeddings().weight.shape == (size, 32)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tied
    kept = min(size, 60)
    torch.testing.assert_close(
        scores(model)[..., :kept], scores(plain)[..., :kept], rtol=1e-4, atol=1e-4
    )


def test_fill_mask(tmp_path: Path, key: Key) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(55))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = stock.BertTokenizer(str(tmp_path / "vocab.txt"))
    plain = made("BertForMaskedLM")
    plain.save_pretrained(tmp_path / "plain")
    encrypt_directory(tmp_path / "plain", tmp_path / "sealed", key=key)
    with using_key(key):
        sealed = stock.AutoModelForMaskedLM.from_pretrained(tmp_path / "sealed")
    answers = [
        [found["token_str"] for found in pipe("w1 [MASK] w3 w4")]
        for pipe in (
            stock.pipeline("fill-mask", model=one, tokenizer=tokenizer) for one in (plain, sealed)
        )
    ]
    assert answers[0] == answers[1]
