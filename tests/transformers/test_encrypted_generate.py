# SPDX-License-Identifier: Apache-2.0
"""Models under protect_inputs() generate what they generate without: the same tokens and, but for
the order of sums, the same logits, for many architectures and ways to generate."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import tiny_models
import torch
import transformers
from plain_kv_tables import PlainKVTables
from tiny_models import DECODERS, ENCODER_DECODERS, MODES, OPENED, TRANSLATIONS

import pyccmem.transformers.tables as tables_module
from pyccmem import errors
from pyccmem.core.kv_tables import KVTables
from pyccmem.transformers import protected_inputs

#: What two orders of summing float32 may differ by, relative to the largest logit.
TOLERANCE = 2e-5

#: All modes are tried with these; with the others greedy search, and the rest in the long form.
THOROUGH = {"llama", "gemma3"}


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Threads cost more than they bring to models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(before)


def differences(model: Any, generate: Any, **options: Any) -> list[str]:
    """What is not the same under protect_inputs()."""
    wanted = generate(model)
    with protected_inputs(model, **options):
        found = generate(model)
    told = []
    if not torch.equal(wanted[0], found[0]):
        told.append("tokens")
    if wanted[1].shape != found[1].shape:
        return [*told, "number of logits"]
    largest = float(wanted[1].abs().max())
    if not float((wanted[1] - found[1]).abs().max()) <= TOLERANCE * largest:
        told.append("logits")
    return told


def product(names: Any, modes: Any) -> list[Any]:
    """All pairs; those that are not representative are long forms."""
    return [
        pytest.param(
            name,
            mode,
            marks=[pytest.mark.full] * (name not in THOROUGH and mode != "greedy"),
            id=f"{name}-{mode}".replace(" ", "_"),
        )
        for name in names
        for mode in modes
    ]


@pytest.mark.parametrize(("name", "mode"), product(DECODERS, MODES))
def test_decoders(name: str, mode: str) -> None:
    model = tiny_models.decoder(name)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert differences(model, MODES[mode]) == []
    opened = any(issubclass(one.category, errors.OpenedCacheWarning) for one in told)
    assert opened == (name in OPENED)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(
            name,
            mode,
            marks=[pytest.mark.full] * (name != "t5" and mode != "greedy"),
            id=f"{name}-{mode}".replace(" ", "_"),
        )
        for name in ENCODER_DECODERS
        for mode in TRANSLATIONS
    ],
)
def test_encoder_decoders(name: str, mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.OpenedCacheWarning)
        assert differences(tiny_models.encoder_decoder(name), TRANSLATIONS[mode]) == []


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_whisper(options: dict[str, Any]) -> None:
    """Its generate() is its own, and its input no token ids."""
    model = tiny_models.whisper()
    sound = torch.randn(2, 8, 60, generator=torch.Generator().manual_seed(5))

    def generate(model: Any) -> Any:
        torch.manual_seed(1)
        return model.generate(sound, max_new_tokens=7, **options)

    wanted = generate(model)
    with protected_inputs(model):
        assert torch.equal(generate(model), wanted)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
@pytest.mark.parametrize("mode", ["greedy", "beams", "assisted", "left-padded"])
def test_layers_that_share_keys_and_values(name: str, mode: str) -> None:
    assert differences(tiny_models.sharing(name), MODES[mode]) == []


@pytest.mark.parametrize("name", ["lfm2", "qwen3-next"])
def test_hybrid_models_when_that_is_accepted(name: str) -> None:
    model = tiny_models.hybrid(name)
    for mode in ("greedy", "beams"):
        with pytest.warns(errors.PlainTensorsWarning, match="recurrent states of 1 of 2 layers"):
            assert differences(model, MODES[mode], plain_states=True) == []


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Equal tokens cannot be demanded: logits of the prompt, within what the type can say."""
    model = tiny_models.decoder(name).to(dtype)
    ids = tiny_models.prompt(2, 9)
    with torch.no_grad():
        wanted = model(ids).logits.float()
        with protected_inputs(model):
            found = model(ids).logits.float()
    assert float((wanted - found).abs().max()) <= 0.03 * float(wanted.abs().max())


def test_int8_is_close() -> None:
    model = tiny_models.decoder("llama")
    ids = tiny_models.prompt(2, 12)
    with torch.no_grad():
        wanted = model(ids).logits
        with protected_inputs(model, dtype="int8"):
            found = model(ids).logits
    difference = float((wanted - found).abs().max()) / float(wanted.abs().max())
    assert 1e-4 < difference < 0.1


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "deepseek-v3"])
def test_over_plain_tables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the native part: what differs here is of the adapter."""
    monkeypatch.setattr(tables_module, "KVTables", PlainKVTables)
    model = tiny_models.decoder(name)
    for mode in ("greedy", "beams", "assisted", "left-padded"):
        assert differences(model, MODES[mode]) == []


# ---- controls ------------------------------------------------------------------------------------


def _changed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Has the tables attend to something else than they were asked to."""
    attend = KVTables.attend

    def other(self: Any, what: Any) -> None:
        new = {
            name: value(getattr(what, name)) if callable(value) else value
            for name, value in changes.items()
        }
        attend(self, dataclasses.replace(what, **new))

    monkeypatch.setattr(KVTables, "attend", other)


@pytest.mark.parametrize(
    ("name", "mode", "changes"),
    [
        ("llama", "greedy", {"causal": False}),
        ("llama", "greedy", {"scale": lambda scale: scale * 1.001}),
        ("llama", "left-padded", {"from_": None}),
        ("mistral", "greedy", {"window": lambda window: window + bool(window)}),
        ("gemma3", "greedy", {"window": 0}),
        ("gemma2", "greedy", {"softcap": 0.0}),
        ("gpt-oss", "greedy", {"sinks": None}),
        ("llama4", "greedy", {"mask": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value),
)
def test_an_attention_that_is_wrong_is_noticed(
    name: str, mode: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _changed(monkeypatch, **changes)
    assert differences(tiny_models.decoder(name), MODES[mode])


@pytest.mark.parametrize(
    ("method", "mode"), [("reorder", "beams"), ("reorder", "contrastive"), ("crop", "assisted")]
)
def test_a_change_that_is_left_out_is_noticed(
    method: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(KVTables, method)

    def other(self: Any, layer: int, *args: Any) -> None:
        if layer != 1:
            done(self, layer, *args)
        elif method == "reorder":
            done(self, layer, [min(n, self.sequences(1) - 1) for n in range(len(args[0]))])

    monkeypatch.setattr(KVTables, method, other)
    assert differences(tiny_models.decoder("llama"), MODES[mode])
