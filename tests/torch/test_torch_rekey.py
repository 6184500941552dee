# SPDX-License-Identifier: Apache-2.0
"""Models whose weights get another key while they compute."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from support import damage, run_threads  # noqa: E402
from torch import nn  # noqa: E402

import pyccmem.torch as encrypted  # noqa: E402
from pyccmem import Key, errors  # noqa: E402
from pyccmem.arena import shared_of, totals  # noqa: E402
from pyccmem.binding import lib  # noqa: E402


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(512, 256)
        self.mid = nn.Linear(256, 256)
        self.norm = nn.LayerNorm(256)
        self.head = nn.Linear(256, 512, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.relu(self.mid(self.embed(ids)))))


@pytest.fixture
def model(key: Key) -> Iterator[nn.Module]:
    torch.manual_seed(1)
    with torch.inference_mode():
        yield encrypted.encrypt_module(Tied().eval(), key=key)


IDS = torch.arange(40).reshape(4, 10) * 7


def arenas(model: nn.Module) -> set[int]:
    return {id(shared_of(parameter.core)) for parameter in model.parameters()}


def test_a_model_computes_the_same_meanwhile(model: nn.Module) -> None:
    expected = model(IDS)
    going = threading.Event()
    going.set()
    count, seen = [0, 0], list[tuple[int, int]]()

    def use(index: int) -> None:
        while going.is_set() or count[index] < 3:
            with torch.inference_mode():
                assert torch.allclose(model(IDS), expected, atol=1e-5)
            count[index] += 1

    def rekey() -> None:
        try:
            for _ in range(3):
                before = arenas(model)
                work = encrypted.rekey_module(model, progress=lambda *done: seen.append(done))
                assert work.finished and seen[-1] == (work.total, work.total)
                assert len(arenas(model)) == 1 and not arenas(model) & before
        finally:
            going.clear()

    run_threads([lambda: use(0), lambda: use(1), rekey])
    assert model.head.weight is model.embed.weight
    assert all(parameter.core.frozen for parameter in model.parameters())
    assert torch.allclose(model(IDS), expected, atol=1e-5)


def test_the_old_arena_goes_with_its_key(key: Key) -> None:
    """The arena's slot of secret memory is given back. Control: it is kept while a copy of the
    model has the pages."""
    model = encrypted.encrypt_module(Tied().eval(), key=key)
    gc.collect()
    slots, stores = lib.ccmem_secret_slots(), totals()["stores"]
    with encrypted.rekey_module(model, background=True) as work:
        pass
    assert work.finished
    assert (lib.ccmem_secret_slots(), totals()["stores"]) == (slots, stores)
    other = copy.deepcopy(model)
    encrypted.rekey_module(model)
    assert lib.ccmem_secret_slots() == slots + 1
    with torch.inference_mode():
        assert torch.equal(other(IDS), model(IDS))
    del other
    assert lib.ccmem_secret_slots() == slots


def test_tensors_that_were_written(model: nn.Module) -> None:
    with torch.inference_mode():
        model.mid.bias.zero_()
    expected = model(IDS)
    encrypted.rekey_module(model)
    assert not model.mid.bias.core.frozen and model.mid.weight.core.frozen
    assert torch.allclose(model(IDS), expected, atol=1e-5)
    with torch.inference_mode():
        model.mid.bias.fill_(1)
    assert not torch.allclose(model(IDS), expected, atol=1e-5)


def test_quantised_weights(key: Key) -> None:
    model = encrypted.encrypt_module(Tied().eval(), key=key, quantize="q8_0")
    with torch.inference_mode():
        expected = model(IDS)
        encrypted.rekey_module(model)
        assert torch.equal(model(IDS), expected)


def test_it_stops_at_a_damaged_tensor(model: nn.Module) -> None:
    expected = model(IDS)
    damage(model.mid.weight.core.buffer, 2, 5)
    with pytest.raises(errors.IntegrityError, match=r"mid\.weight"):
        encrypted.rekey_module(model)
    with pytest.raises(errors.IntegrityError):
        model(IDS)
    damage(model.mid.weight.core.buffer, 2, 5)
    assert torch.allclose(model(IDS), expected, atol=1e-5)
    encrypted.rekey_module(model)
    assert torch.allclose(model(IDS), expected, atol=1e-5)


def test_a_model_in_a_file_is_refused(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    encrypted.save_model(Tied().eval(), path, key=key)
    model = Tied().eval()
    encrypted.load_model(model, path, key=key)
    if all(p.core.writable or p.core.frozen for p in model.parameters() if hasattr(p, "core")):
        model = Tied().eval()
        state = encrypted.load_file(path, key=key)
        model.load_state_dict(state, strict=False, assign=True)
    with pytest.raises(errors.ReadOnlyError, match=r"rotate"):
        encrypted.rekey_module(model)
    with pytest.raises(errors.ArgumentTypeError):
        encrypted.rekey_module(None)  # type: ignore[arg-type]
