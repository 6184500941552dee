# SPDX-License-Identifier: Apache-2.0
"""Sealed GGUF files as models of transformers: the same configuration, tokenizer, logits and text
as transformers' own load of the plain file, with weights that stay encrypted blocks."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("accelerate", reason="transformers needs accelerate for GGUF files")

import gguf as package
import gguf_models
import secret_search
import torch
from gguf_models import ARCHITECTURES, TOKENS
from support import not_sanitized
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

import pyccmem.torch
import pyccmem.transformers
import pyccmem.transformers.gguf_quantizer
from pyccmem import Key, errors, gguf
from pyccmem.cli.commands.keygen import write_key_file
from pyccmem.torch import EncryptedTensor, stored_types
from pyccmem.transformers import PyccmemConfig, from_gguf, tokenizer_from_gguf, using_key
from pyccmem.transformers.gguf_names import ARCHITECTURES as NAMED

IDS = torch.tensor([[1, 5, 9, 44, 120, 99, 260, 261, 262, 30, 31, 7]])

#: The most by which logits differ, in their norm: a product rounds x to 8 bits, 0.7 % of its norm
#: where 256 elements share a scale, and eight or so products follow one another. With plain weights
#: and x rounded alone, these models' logits differ by 1.2 to 3.4 %.
BOUND = 0.05


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(pyccmem.transformers.KEY_FILE_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


@pytest.fixture
def home(tmp_path: Path, key: Key) -> Path:
    """A folder with a Llama, plain and sealed."""
    made(tmp_path, key, "llama")
    return tmp_path


def made(folder: Path, key: Key, architecture: str, **options: Any) -> Path:
    gguf_models.write(folder / "m.gguf", architecture, **options)
    gguf.seal(folder / "m.gguf", folder / "m.gguf.sealed", key, overwrite=True)
    return folder / "m.gguf.sealed"


def plain_model(folder: Path, name: str = "m.gguf", **options: Any) -> Any:
    options.setdefault("dtype", torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, **options)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found


def perplexity(model: Any) -> float:
    """Of a fixed text of 768 tokens."""
    text = torch.from_numpy(np.random.default_rng(8).integers(3, len(TOKENS), (4, 192)))
    with torch.inference_mode():
        return math.exp(model(text, labels=text).loss)


@pytest.mark.parametrize(
    ("architecture", "tied"),
    # transformers knows no output matrix of Gemma 2's apart from the embedding.
    [*((name, name == "gemma2") for name in ARCHITECTURES), ("llama", True), ("gemma3", True)],
)
def test_it_computes_what_the_plain_file_does(
    tmp_path: Path, key: Key, architecture: str, tied: bool
) -> None:
    sealed = made(tmp_path, key, architecture, tied=tied)
    # transformers calls a Llama of this name Mistral, and then finds no names for its tensors.
    reference = "llama" if architecture == "mistral" else architecture
    gguf_models.write(tmp_path / "plain.gguf", reference, tied=tied)
    plain = plain_model(tmp_path, "plain.gguf")
    ours = from_gguf(sealed, key=key)
    assert type(ours).__name__.lower().startswith(architecture) and ours.dtype is torch.float32
    theirs = logits(plain)
    error = torch.linalg.vector_norm(logits(ours) - theirs, dim=-1)
    assert (error <= BOUND * torch.linalg.vector_norm(theirs, dim=-1)).all()
    assert theirs.std() > 0.1  # logits that say something
    assert perplexity(ours) == pytest.approx(perplexity(plain), rel=1e-3)
    # The control: with the rows of q and k as the file has them, or norms with 1 more, this fails.
    if architecture in ("llama", "gemma2"):
        worse = plain_model(tmp_path, "plain.gguf")
        with torch.no_grad():
            for layer in worse.model.layers:
                weight = layer.self_attn.q_proj.weight
                if architecture == "llama":
                    order = torch.arange(64).view(32, 2).T.reshape(-1)
                    weight.copy_(weight.view(4, 64, -1)[:, order].reshape(weight.shape))
                else:
                    layer.input_layernorm.weight += 1
        error = torch.linalg.vector_norm(logits(worse) - theirs, dim=-1)
        assert (error > BOUND * torch.linalg.vector_norm(theirs, dim=-1)).any()


def test_the_same_text_is_generated(home: Path, key: Key) -> None:
    sealed = home / "m.gguf.sealed"
    plain, ours = plain_model(home), from_gguf(sealed, key=key)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    theirs = plain.generate(IDS, output_logits=True, return_dict_in_generate=True, **options)
    found = ours.generate(IDS, **options)
    # The two may part where the plain model's two best words are nearly equal.
    for at, step in enumerate(theirs.logits):
        if found[0, IDS.shape[1] + at] != theirs.sequences[0, IDS.shape[1] + at]:
            best = step[0].topk(2).values
            assert best[0] - best[1] < 2 * BOUND * step.norm()
            break
    assert found.shape == theirs.sequences.shape


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_packed_bytes_are_those_of_the_file(tmp_path: Path, key: Key, architecture: str) -> None:
    model = from_gguf(made(tmp_path, key, architecture), key=key)
    header = gguf.read_header(tmp_path / "m.gguf")
    expected = sum(t.nbytes for t in header.tensors.values() if not t.name.startswith("rope"))
    held = stored_types(model)
    assert sum(t.bytes for kind, t in held.items() if "plain" not in kind) == expected
    assert {"q4_k", "q6_k", "q8_0", "q4_0", "float32"} <= set(held)
    # What is plain is computed from the configuration: frequencies, no weights.
    assert sum(t.bytes for kind, t in held.items() if "plain" in kind) < 1024
    assert all(isinstance(p, EncryptedTensor) for p in model.parameters())
    # The control: transformers' own load of the plain file takes several times as much.
    if architecture != "mistral":
        plain = plain_model(tmp_path)
        assert sum(p.numel() * p.element_size() for p in plain.parameters()) > 4 * expected


def test_only_rearranged_rows_are_copied(tmp_path: Path, key: Key) -> None:
    """Of a Llama, q and k, as blocks; of the others, nothing but Gemma's norms: the rest lies in
    the file."""
    rearranged: dict[str, set[str]] = {"llama": {"q_proj", "k_proj"}, "qwen2": set(), "phi3": set()}
    for architecture, copied in rearranged.items():
        model = from_gguf(made(tmp_path, key, architecture), key=key)
        own = {
            name.split(".")[-2]
            for name, parameter in model.named_parameters()
            if not _is_mapped(parameter)
        }
        assert own == copied
    q = from_gguf(made(tmp_path, key, "llama"), key=key).model.layers[0].self_attn.q_proj.weight
    raw = q.core.raw[...]
    header = gguf.read_header(tmp_path / "m.gguf").tensors["blk.0.attn_q.weight"]
    data = np.fromfile(tmp_path / "m.gguf", np.uint8)[header.start : header.end]
    theirs = data.reshape(4, 32, 2, -1).swapaxes(1, 2).reshape(raw.shape)
    assert np.array_equal(raw, theirs) and not np.array_equal(raw, data.reshape(raw.shape))
    assert q.core.frozen


def _is_mapped(parameter: Any) -> bool:
    core = parameter.core
    raw = getattr(core, "raw", core)
    return not raw.writable and not raw.frozen


@pytest.mark.parametrize("way", ["config", "block", "variable", "path"])
def test_ways_to_give_the_key(
    home: Path, key: Key, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = home / "m.gguf.sealed"
    name: Any = {"gguf_file": "m.gguf.sealed"}
    if way == "config":
        model = AutoModelForCausalLM.from_pretrained(
            home, quantization_config=PyccmemConfig(key=key), **name
        )
    elif way == "block":
        with using_key(key):
            model = AutoModelForCausalLM.from_pretrained(home, **name)
            config = AutoConfig.from_pretrained(home, **name)
        assert config.hidden_size == 256
    elif way == "variable":
        write_key_file(home / "key", key)
        monkeypatch.setenv(pyccmem.transformers.KEY_FILE_VARIABLE, str(home / "key"))
        model = AutoModelForCausalLM.from_pretrained(home, **name)
    else:
        monkeypatch.chdir(home)
        model = from_gguf(sealed.name, key=key)
    assert stored_types(model)["q4_k"].tensors == 4
    assert torch.isfinite(logits(model)).all()


def test_no_key_and_another_key(home: Path, key: Key) -> None:
    sealed = home / "m.gguf.sealed"
    with pytest.raises(errors.InvalidKeyError, match="no key"):
        from_gguf(sealed)
    with pytest.raises(errors.InvalidKeyError):
        from_gguf(sealed, key=Key.generate())
    with pytest.raises(errors.InvalidKeyError, match="no key"):
        AutoModelForCausalLM.from_pretrained(home, gguf_file="m.gguf.sealed")
    with pytest.raises(errors.InvalidKeyError, match="no key"):
        AutoTokenizer.from_pretrained(home, gguf_file="m.gguf.sealed")


def test_pins(home: Path, key: Key) -> None:
    sealed = home / "m.gguf.sealed"
    pin = gguf.open_sealed(sealed, key).pin
    assert from_gguf(sealed, key=key, expect=pin) is not None
    with pytest.raises(errors.IntegrityError):
        from_gguf(sealed, key=key, expect="0" * 32 + ":1")


def test_a_file_that_is_exchanged_while_it_is_loaded(
    home: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its configuration was read, by another that was sealed with the same key: the pin is
    that of the file whose tensors are taken. The control: without a pin it loads."""
    sealed, other = home / "m.gguf.sealed", home / "other"
    pin = gguf.open_sealed(sealed, key).pin
    gguf_models.write(home / "n.gguf", "llama", seed=2)
    gguf.seal(home / "n.gguf", other, key)
    read = pyccmem.transformers.gguf_quantizer.GGUFQuantizer.read_header

    def exchanged(self: Any, name: str) -> None:
        other.replace(sealed)
        read(self, name)

    monkeypatch.setattr(pyccmem.transformers.gguf_quantizer.GGUFQuantizer, "read_header", exchanged)
    kept = sealed.read_bytes(), other.read_bytes()
    with pytest.raises(errors.IntegrityError):
        from_gguf(sealed, key=key, expect=pin)
    sealed.write_bytes(kept[0])
    other.write_bytes(kept[1])
    assert from_gguf(sealed, key=key) is not None


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "mistral"])
def test_configuration_and_names_are_those_of_transformers(
    tmp_path: Path, key: Key, architecture: str
) -> None:
    made(tmp_path, key, architecture)
    theirs = AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf").to_dict()
    with using_key(key):
        ours = AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf.sealed").to_dict()
    more = {"dtype", "head_dim"}
    assert {k: v for k, v in ours.items() if k not in more} == {
        k: v for k, v in theirs.items() if k not in more
    }
    assert ours["head_dim"] in (theirs.get("head_dim"), ARCHITECTURES[architecture].get("head"), 64)
    model = plain_model(tmp_path)

    class Processor:
        def preprocess_name(self, name: str) -> str:
            return name

        def perform_fallback_tensor_mapping(self, *_: Any) -> None:
            pass

    table = get_gguf_hf_weights_map(model, Processor())
    for name in gguf.read_header(tmp_path / "m.gguf").tensors:
        if (architecture, name) == ("gemma2", "output.weight"):
            continue  # which transformers makes up at random
        assert NAMED[architecture].name(name) == table.get(name), name


def test_the_tokenizer_is_that_of_the_plain_file(home: Path, key: Key) -> None:
    plain = AutoTokenizer.from_pretrained(home, gguf_file="m.gguf")
    ours = tokenizer_from_gguf(home / "m.gguf.sealed", key=key)
    text = "the cat sat on the mat, twice: äß\n"
    assert ours(text)["input_ids"] == plain(text)["input_ids"]
    assert ours.get_vocab() == plain.get_vocab() and ours.bos_token == "<s>"
    assert len(ours(text)["input_ids"]) > 5
    with using_key(key):
        again = AutoTokenizer.from_pretrained(home, gguf_file="m.gguf.sealed")
    assert again(text)["input_ids"] == plain(text)["input_ids"]


def test_other_classes_and_types(home: Path, key: Key) -> None:
    sealed = home / "m.gguf.sealed"
    base = from_gguf(sealed, key=key, model_class=AutoModel)
    with torch.inference_mode():
        states = base(IDS).last_hidden_state
        whole = from_gguf(sealed, key=key).model(IDS).last_hidden_state
    assert torch.equal(states, whole)
    half = from_gguf(sealed, key=key, dtype=torch.bfloat16)
    assert half.dtype is torch.bfloat16 and logits(half).dtype is torch.bfloat16
    assert stored_types(half)["q4_k"] == stored_types(from_gguf(sealed, key=key))["q4_k"]
    close = logits(from_gguf(sealed, key=key))
    assert (logits(half).float() - close).norm() < 0.05 * close.norm()


def test_files_without_blocks(tmp_path: Path, key: Key) -> None:
    """F16 and F32 matrices are encrypted in the type in which the model computes."""
    sealed = made(tmp_path, key, "llama", kinds=("f16", "f32"))
    with using_key(key):
        assert AutoConfig.from_pretrained(tmp_path, gguf_file=sealed.name).dtype is torch.float16
    single = from_gguf(sealed, key=key, dtype=torch.float32)
    assert torch.allclose(logits(single), logits(plain_model(tmp_path)), atol=1e-4)
    assert {kind for kind in stored_types(single) if "plain" not in kind} == {"float32"}


def test_mixed_with_f16(tmp_path: Path, key: Key) -> None:
    sealed = made(tmp_path, key, "qwen2", kinds=("q8_0", "f16"))
    model = from_gguf(sealed, key=key)
    error = (logits(model) - logits(plain_model(tmp_path))).norm()
    assert error < BOUND * logits(model).norm()


def test_a_model_in_several_files(home: Path, key: Key) -> None:
    """Gives what the model in one file does, of whichever file is named; without one of them, or
    with one of another set, nothing."""
    gguf_models.write(home / "s.gguf", "llama", split=8)
    for path in sorted(home.glob("s-*.gguf")):
        gguf.seal(path, f"{path}.sealed", key, set_id="the same")
    first = home / "s-00001-of-00003.gguf.sealed"
    whole = from_gguf(home / "m.gguf.sealed", key=key)
    model = from_gguf(first, key=key)
    assert torch.equal(logits(model), logits(whole))
    assert stored_types(model) == stored_types(whole)
    assert all(isinstance(p, EncryptedTensor) for p in model.parameters())
    with using_key(key):
        again = AutoModelForCausalLM.from_pretrained(home, gguf_file=first.name)
    assert torch.equal(logits(again), logits(whole))
    with gguf.open_model(first, key) as opened:
        pins = opened.pins
    assert from_gguf(first, key=key, expect=pins) is not None
    with pytest.raises(errors.IntegrityError):
        from_gguf(first, key=key, expect=pins[::-1])
    text = "the cat sat"
    tokenizer = tokenizer_from_gguf(first, key=key)
    assert (
        tokenizer(text).input_ids
        == tokenizer_from_gguf(home / "m.gguf.sealed", key=key)(text).input_ids
    )
    second = home / "s-00002-of-00003.gguf"
    gguf.seal(second, f"{second}.sealed", key, overwrite=True)
    with pytest.raises(errors.FileFormatError, match="not sealed together"):
        from_gguf(first, key=key)
    (home / f"{second.name}.sealed").unlink()
    with pytest.raises(errors.FileReadError, match="00002-of-00003"):
        from_gguf(first, key=key)


@pytest.mark.parametrize(
    ("entry", "value", "match"),
    [
        ("block_count", 1, "9 tensors for which the model .* no place"),
        ("block_count", 3, "lacks 9 tensors"),
        ("block_count", 0, "num_hidden_layers is 0"),
        ("attention.head_count_kv", 0, "num_key_value_heads is 0"),
        ("attention.head_count", 8, r"q_proj.* \(256, 256\).* \(512, 256\)"),
        ("embedding_length", 128, r"\(269, 256\).* \(269, 128\)"),
        ("embedding_length", 1 << 31, "hidden_size is 2147483648"),
        ("vocab_size", 100_000, r"\(269, 256\).* \(100000, 256\)"),
        ("attention.head_count", 4, None),
    ],
)
def test_metadata_that_do_not_fit_the_tensors(
    home: Path, key: Key, entry: str, value: int, match: str | None
) -> None:
    """A number is changed in its place; the last one, which is the control, to what it is."""
    data = bytearray((home / "m.gguf").read_bytes())
    name = f"llama.{entry}".encode()
    at = data.index(len(name).to_bytes(8, "little") + name) + 8 + len(name) + 4
    data[at : at + 4] = value.to_bytes(4, "little")
    (home / "m.gguf").write_bytes(data)
    gguf.seal(home / "m.gguf", home / "m.gguf.sealed", key, overwrite=True)
    if match is None:
        assert torch.isfinite(logits(from_gguf(home / "m.gguf.sealed", key=key))).all()
        return
    with pytest.raises(errors.FileFormatError, match=match):
        from_gguf(home / "m.gguf.sealed", key=key)


def test_damage_is_noticed(home: Path, key: Key) -> None:
    sealed = home / "m.gguf.sealed"
    model = from_gguf(sealed, key=key)
    before = logits(model)
    weight = model.model.layers[1].mlp.down_proj.weight
    page = bytes(weight.core.raw.buffer.ciphertext[:64])
    data = sealed.read_bytes()
    with sealed.open("r+b") as file:
        file.seek(data.index(page))
        file.write(bytes([page[0] ^ 1]))
    with pytest.raises(errors.IntegrityError, match=r"blk\.1\.ffn_down"):
        logits(model)
    with pytest.raises(errors.IntegrityError):
        model.generate(IDS, max_new_tokens=2)
    sealed.write_bytes(data)
    assert torch.equal(logits(from_gguf(sealed, key=key)), before)
    with sealed.open("r+b") as file:  # the header's own pages
        file.write(data[:4096][:-1] + bytes([data[4095] ^ 1]))
    with pytest.raises((errors.IntegrityError, errors.FileFormatError)):
        from_gguf(sealed, key=key)


def test_read_into_memory(home: Path, key: Key) -> None:
    sealed = home / "m.gguf.sealed"
    model = from_gguf(sealed, key=key, mmap=False, activations="wiped")
    before = logits(model)
    sealed.write_bytes(bytes(sealed.stat().st_size))
    assert torch.equal(logits(model), before)
    assert model.lm_head.weight.activations == "wiped"


def test_what_is_refused(tmp_path: Path, key: Key) -> None:
    sealed = made(tmp_path, key, "llama")
    with pytest.raises(errors.FileFormatError, match="plain GGUF file"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="m.gguf", quantization_config=PyccmemConfig(key=key)
        )
    with pytest.raises(errors.ArgumentError, match="CPU"):
        from_gguf(sealed, key=key, device_map="meta")
    from transformers import GgufConfig

    with using_key(key), pytest.raises(errors.ArgumentError, match="GgufConfig"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=sealed.name, quantization_config=GgufConfig()
        )
    (tmp_path / "other.gguf").write_bytes(sealed.read_bytes())
    with using_key(key), pytest.raises(errors.ArgumentError, match="is sealed"):
        AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="other.gguf")
    with pytest.raises(errors.FileReadError):
        from_gguf(tmp_path / "none.gguf.sealed", key=key, expect="0" * 32 + ":1")
    made(tmp_path, key, "llama", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(errors.FileFormatError, match="lacks 1 tensors"):
        from_gguf(sealed, key=key)


def test_architectures_that_are_not_known(tmp_path: Path, key: Key) -> None:
    from gguf_files import STRING, Draft

    for name in ("falcon", "x" * 100):
        draft = Draft(pairs=[("general.architecture", STRING, name)])
        (tmp_path / "m.gguf").write_bytes(draft.bytes())
        gguf.seal(tmp_path / "m.gguf", tmp_path / "m.gguf.sealed", key, overwrite=True)
        with pytest.raises(errors.FileFormatError, match="architecture"):
            from_gguf(tmp_path / "m.gguf.sealed", key=key)


def test_types_that_have_no_products(tmp_path: Path, key: Key) -> None:
    gguf_models.write(tmp_path / "m.gguf", "llama")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    name = b"blk.0.attn_v.weight"
    place = data.index(name) + len(name) + 4 + 16
    old = int.from_bytes(data[place : place + 4], "little")
    # IQ4_NL and MXFP4 have blocks of 32, as Q8_0 and Q4_0; those of MXFP4 are smaller.
    data[place : place + 4] = (39).to_bytes(4, "little")
    assert old in (2, 8, 12, 14)
    (tmp_path / "m.gguf").write_bytes(bytes(data))
    gguf.seal(tmp_path / "m.gguf", tmp_path / "m.gguf.sealed", key)
    with pytest.raises(errors.FileRequestError, match="MXFP4"):
        from_gguf(tmp_path / "m.gguf.sealed", key=key)


def test_several_threads(home: Path, key: Key) -> None:
    # Loaded one after the other: from_pretrained() of transformers replaces tie_weights() of its
    # class for a while, and two at a time would leave nothing in its place.
    models = [from_gguf(home / "m.gguf.sealed", key=key) for _ in range(2)]
    first = logits(models[0])
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(logits(models[0]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and all(torch.equal(found, first) for found in results)
    assert torch.equal(logits(models[1]), first)


def test_plain_models_load_as_before(home: Path, key: Key) -> None:
    """The hooks leave files that are not sealed alone."""
    model = plain_model(home)
    assert not any(isinstance(p, EncryptedTensor) for p in model.parameters())
    assert AutoTokenizer.from_pretrained(home, gguf_file="m.gguf").bos_token == "<s>"


# ---- what another process finds ------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, StoppingCriteria
from pyccmem import Key
from pyccmem.transformers import from_gguf
torch.set_num_threads(1)
folder = Path(sys.argv[1])
if sys.argv[2] == "plain":
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf", dtype=torch.float32)
else:
    model = from_gguf(folder / "m.gguf.sealed", key=Key.from_file(folder / "key"))

class Wait(StoppingCriteria):
    def __call__(self, ids, scores, **more):
        if ids.shape[1] == 10:
            print("ready", flush=True)
            input()
        return torch.zeros(len(ids), dtype=torch.bool)

model.generate(torch.tensor([[1, 5, 9, 44]]), max_new_tokens=8, do_sample=False,
               eos_token_id=None, stopping_criteria=[Wait()])
"""


@not_sanitized
@pytest.mark.parametrize("kind", ["encrypted", "plain"])
def test_what_another_process_finds(tmp_path: Path, key: Key, kind: str) -> None:
    """In the midst of generate(): no block and no row of weights of the encrypted model; of the
    plain one, which is the control, rows of every matrix."""
    made(tmp_path, key, "llama")
    write_key_file(tmp_path / "key", key)
    needles: dict[str, bytes] = {}
    reader = package.GGUFReader(tmp_path / "m.gguf")
    for tensor in reader.tensors:
        if len(tensor.data.shape) != 2:
            continue
        for row in (3, len(tensor.data) // 2):
            needles[f"block of {tensor.name}, row {row}"] = tensor.data[row, 64:96].tobytes()
            if tensor.name != "token_embd.weight":  # whose rows become states of the model
                values = package.dequantize(tensor.data[row : row + 1], tensor.tensor_type)
                needles[f"weights of {tensor.name}, row {row}"] = values[0, 16:24].tobytes()
    del reader
    if kind == "encrypted":
        (tmp_path / "m.gguf").unlink()
    with secret_search.child(HOLDER, str(tmp_path), kind) as pid:
        found = {name for name, _ in secret_search.find(pid, needles)}
    if kind == "encrypted":
        assert not found
    else:
        weights = {name for name in needles if name.startswith("weights")}
        assert found >= weights and len(weights) == 2 * 15
