# SPDX-License-Identifier: Apache-2.0
"""torch.compile(fullgraph=True) of models with encrypted weights."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import support

import pyccmem

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch_support import IDS, Model, assert_close  # noqa: E402

from pyccmem import errors  # noqa: E402
from pyccmem.torch import EncryptedTensor, encrypt_module  # noqa: E402

HAS_COMPILER = bool(shutil.which("g++") or shutil.which("clang++"))


@pytest.fixture
def models(key: pyccmem.Key) -> Any:
    torch._dynamo.reset()
    plain = Model().eval()
    yield plain, encrypt_module(copy.deepcopy(plain), key=key)
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_compiled(models: Any, backend: str, mode: Any) -> None:
    plain, model = models
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with mode():
        for ids in (IDS, IDS, IDS[:2], IDS.repeat(9, 1)):
            assert_close(compiled(ids).detach(), plain(ids).detach())
        with torch.no_grad():
            model.first.weight.mul_(2)
            plain.first.weight.mul_(2)
        assert_close(compiled(IDS).detach(), plain(IDS).detach())


def test_the_program_holds_operators_and_no_weight(models: Any) -> None:
    """Products and rows are operators on ciphertext; what is opened as a whole is small."""
    from torch._dynamo.backends.common import aot_autograd

    _, model = models
    names: list[str] = []
    opened: list[Any] = []
    constants: list[Any] = []

    def note(graph: Any, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            names.append(str(node.target))
            if "pyccmem.decrypt" in str(node.target):
                opened.append(list(node.args[2]))
        constants.extend(t for t in graph.buffers() if t.dtype.is_floating_point)
        constants.extend(t for t in graph.parameters() if t.dtype.is_floating_point)
        return graph.forward

    with torch.no_grad():
        torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=note))(IDS)
    for name, count in {"linear": 3, "linear_columns": 1, "embedding": 2}.items():
        assert sum(f"pyccmem.{name}.default" in found for found in names) == count, names
    assert opened and all(len(size) < 2 or size == [1, 40] for size in opened), opened
    assert not constants


def test_operators_are_tagged() -> None:
    for name in ("decrypt", "linear", "linear_columns", "embedding"):
        tags = getattr(torch.ops.pyccmem, name).default.tags
        assert torch.Tag.nondeterministic_seeded in tags


def test_operators_take_ciphertext_alone(models: Any) -> None:
    _, model = models
    sealed = model.first.weight._ciphertext
    arguments = (0, [64, 32], torch.float32)
    found = torch.ops.pyccmem.decrypt(sealed, *arguments)
    assert torch.equal(found, model.first.weight.decrypt())
    with pytest.raises(errors.ArgumentError):
        torch.ops.pyccmem.decrypt(sealed.clone(), *arguments)
    model.first.weight.core.close()
    with pytest.raises(errors.ClosedError):
        torch.ops.pyccmem.decrypt(sealed, *arguments)


def plain_bytes_at(place: int, nbytes: int) -> torch.Tensor:
    """A tensor of torch's own that claims to lie there, whatever does; not to be read."""
    from pyccmem.binding import ffi

    memory = ffi.buffer(ffi.cast("uint8_t *", place), nbytes)
    return torch.frombuffer(memory, dtype=torch.uint8)


def test_ciphertext_is_found_while_it_lives(key: pyccmem.Key) -> None:
    """Stores come and go, and addresses are used again: each ciphertext leads to its own store, and
    nothing else that lies there to any."""
    from torch_support import sealed

    for n in range(30):
        t = sealed(torch.full((3000,), float(n)), key)
        view = t._ciphertext
        del t
        for alias in (view, view.detach(), view.view(-1)):
            found = torch.ops.pyccmem.decrypt(alias, 0, [3000], torch.float32)
            assert found.eq(n).all()
        place, nbytes = view.data_ptr(), view.numel()
        others = [view.clone(), view[64:], plain_bytes_at(place, nbytes)]
        del view, alias
        others.append(plain_bytes_at(place, nbytes))
        for other in others:
            with pytest.raises(errors.ArgumentError, match="not the ciphertext"):
                torch.ops.pyccmem.decrypt(other, 0, [3000], torch.float32)


def test_ciphertext_of_a_closed_tensor_does_not_lead_to_another(key: pyccmem.Key) -> None:
    """An arena gives its pages to another tensor, while a view of them lives."""
    arena = pyccmem.Arena(key=key)

    def sealed(value: float) -> Any:
        return EncryptedTensor.from_tensor(torch.full((3000,), value), key=key, arena=arena)

    closed = sealed(-1.0)
    view = closed._ciphertext
    closed.core.close()
    others = []
    for n in range(1000):
        others.append(sealed(float(n)))
        if others[-1]._ciphertext.data_ptr() == view.data_ptr():
            break
    assert others[-1]._ciphertext.data_ptr() == view.data_ptr()
    for n, other in enumerate(others):
        found = torch.ops.pyccmem.decrypt(other._ciphertext, 0, [3000], torch.float32)
        assert found.eq(n).all()
    with pytest.raises(errors.ClosedError):
        torch.ops.pyccmem.decrypt(view, 0, [3000], torch.float32)


def test_views_that_are_gone_are_forgotten(
    key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_support import sealed

    from pyccmem.torch import _stored

    monkeypatch.setattr(_stored, "_views", {})
    kept = [sealed(torch.full((30,), float(n)), key) for n in range(10)]
    views = [t._ciphertext for t in kept]
    dead = {number: lambda: None for number in range(-20, 0)}
    _stored._views.update(dead)
    monkeypatch.setattr(_stored, "_sweep_at", 31)
    views.append(sealed(torch.full((30,), 10.0), key)._ciphertext)
    assert len(_stored._views) == 11
    for n, view in enumerate(views):
        assert torch.ops.pyccmem.decrypt(view, 0, [30], torch.float32).eq(n).all()


INDUCTOR = """
import copy, sys, torch
from torch import nn
sys.path.insert(0, sys.argv[1])
import pyccmem
from pyccmem.torch import encrypt_module
from torch_support import assert_close
import torch._inductor.config as config
config.compile_threads = 1
ids = torch.arange(21).view(3, 7)
for freezing in (False, True):
    torch._dynamo.reset()
    config.freezing = freezing
    plain = nn.Sequential(nn.Embedding(50, 32), nn.LayerNorm(32), nn.Linear(32, 9)).eval()
    model = encrypt_module(copy.deepcopy(plain), key=pyccmem.Key.generate())
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert_close(compiled(ids), plain(ids))
        # A weight that had become a constant of the program would not change.
        for part in range(3):
            model[part].weight.mul_(2)
            plain[part].weight.mul_(2)
            assert_close(compiled(ids), plain(ids))
print("same")
"""


@support.not_sanitized
@pytest.mark.skipif(not HAS_COMPILER, reason="inductor needs a C++ compiler")
def test_inductor(tmp_path: Path) -> None:
    """With freezing, too, which computes what depends on weights alone once and for all."""
    environment = support.child_environment(TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    directory = str(support.TESTS / "support")
    found = support.check_python(INDUCTOR, directory, environment=environment, timeout=300)
    assert found.strip() == "same"
