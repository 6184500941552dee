# SPDX-License-Identifier: Apache-2.0
"""encrypt_module() and decrypt_module(): whole models, their state dicts and conversions."""

from __future__ import annotations

import copy
import multiprocessing
import threading
import warnings
from typing import Any

import pytest
import support

import pyccmem
from pyccmem import errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch import nn  # noqa: E402
from torch_support import IDS, LAYERS, Model, assert_close  # noqa: E402

from pyccmem.torch import EncryptedTensor, decrypt_module, encrypt_module  # noqa: E402


@pytest.fixture
def models(key: pyccmem.Key) -> tuple[Any, Any]:
    plain = Model().eval()
    return plain, encrypt_module(copy.deepcopy(plain), key=key)


def test_outputs_are_those_of_the_plain_model(models: tuple[Any, Any]) -> None:
    plain, model = models
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            for ids in (IDS, IDS[:1, :1], IDS.repeat(9, 1)):
                assert_close(model(ids).detach(), plain(ids).detach())


def test_every_tensor_is_ciphertext(models: tuple[Any, Any]) -> None:
    plain, model = models
    named = dict(model.named_parameters())
    assert list(named) == [name for name, _ in plain.named_parameters()]
    for tensor in (*named.values(), *model.buffers()):
        assert type(tensor) is EncryptedTensor and not tensor.requires_grad
    assert all(isinstance(p, nn.Parameter) for p in named.values())
    assert model.head.weight is model.embedding.weight
    assert "first.weight" in repr(model.first.weight)


def test_include_exclude_progress(key: pyccmem.Key) -> None:
    def encrypted(**options: Any) -> set[str]:
        model = encrypt_module(Model(), key=key, **options)
        named = (*model.named_parameters(), *model.named_buffers())
        return {name for name, tensor in named if isinstance(tensor, EncryptedTensor)}

    everything = encrypted()
    assert encrypted(include=["first.*", "*.bias"]) == {
        "first.weight",
        "first.bias",
        "norm.bias",
        "head.bias",
    }
    assert encrypted(exclude="norm.*") == everything - {"norm.weight", "norm.bias"}
    assert encrypted(include=lambda name, tensor: tensor.ndim == 2, exclude=["place*"]) == {
        "embedding.weight", "first.weight", "second.weight", "turned", "positions",
    }  # fmt: skip
    calls: list[tuple[int, int]] = []
    encrypted(progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] and sorted(calls) == calls
    for wrong in ({"include": [3]}, {"key": None}):
        with pytest.raises(errors.ArgumentTypeError):
            encrypt_module(Model(), **{"key": key, **wrong})
    with pytest.raises(errors.ArgumentTypeError):
        encrypt_module(torch.ones(3), key=key)


def test_the_plain_tensors_are_overwritten(key: pyccmem.Key) -> None:
    model = Model()
    kept, shared = model.first.weight, model.norm.weight
    transposed = model.second.weight.data = model.second.weight.data.t().contiguous().t()
    model.norm.bias.data = shared.data  # one memory for two
    encrypt_module(model, key=key, exclude=["norm.bias"])
    assert not kept.any() and not transposed.any()
    assert shared.all(), "a tensor that was not chosen lies there"
    model = Model()
    kept = model.first.weight
    encrypt_module(model, key=key, wipe=False)
    assert kept.all()


def test_memory_that_cannot_be_written(key: pyccmem.Key, tmp_path: Any) -> None:
    """The tensor of a mapped file is encrypted, and left as it is."""
    import numpy as np

    path = tmp_path / "w"
    np.arange(5000, dtype=np.float32).tofile(path)
    layer = nn.Linear(1, 1, bias=False)
    mapped = np.memmap(path, np.float32, "r").reshape(50, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about memory not writable, once a process
        layer.weight = nn.Parameter(torch.from_numpy(mapped), requires_grad=False)
    encrypt_module(layer, key=key)
    assert layer.weight.decrypt()[49, 99] == 4999 and mapped[49, 99] == 4999


def test_a_failure_changes_nothing(key: pyccmem.Key) -> None:
    model = Model()
    model.norm.weight = nn.Parameter(torch.ones(64, device="meta"))
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    with pytest.raises(errors.ArgumentTypeError):
        encrypt_module(model, key=key)
    assert before == {name: id(tensor) for name, tensor in model.named_parameters()}
    assert model.first.weight.any()


def test_decrypt_module(models: tuple[Any, Any]) -> None:
    plain, model = models
    assert decrypt_module(model) is model
    for tensor in (*model.parameters(), *model.buffers()):
        assert not isinstance(tensor, EncryptedTensor)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model(IDS), plain(IDS))
    model.requires_grad_(True)
    model(IDS).sum().backward()
    assert model.first.weight.grad is not None


def test_state_dicts(models: tuple[Any, Any]) -> None:
    plain, model = models
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(type(tensor) is EncryptedTensor for tensor in state.values())
    other = Model().eval()
    identities = {name: id(p) for name, p in model.named_parameters()}
    model.load_state_dict(other.state_dict())
    assert identities == {name: id(p) for name, p in model.named_parameters()}
    model.scale.copy_(other.scale)
    assert_close(model(IDS), other(IDS).detach())
    assert torch.equal(state["first.weight"].decrypt(), other.first.weight), "it shares the data"
    back = Model().eval()
    with pytest.warns(errors.PlainTensorsWarning, match="assign=True"):
        back.load_state_dict(state)
    assert torch.equal(back.turned, other.turned) and type(back.turned) is nn.Parameter
    for change in ({"turned": torch.ones(32, 31)}, {"more": torch.ones(1)}):
        with pytest.raises(RuntimeError, match=next(iter(change))):
            model.load_state_dict({**other.state_dict(), **change})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_conversions(models: tuple[Any, Any]) -> None:
    plain, model = models
    nbytes = model.first.weight.core.nbytes
    for convert, kind, size in [
        (lambda m: m.to(torch.bfloat16), torch.bfloat16, 2),
        (lambda m: m.half(), torch.float16, 2),
        (lambda m: m.double(), torch.float64, 8),
        (lambda m: m.float(), torch.float32, 4),
        (lambda m: m.cpu(), torch.float32, 4),
    ]:
        assert convert(model) is model
        convert(plain)
        weight = model.first.weight
        assert type(weight) is EncryptedTensor and isinstance(weight, nn.Parameter)
        assert weight.dtype == kind and weight.core.nbytes == nbytes // 4 * size
        assert torch.equal(weight.decrypt(), plain.first.weight)
        assert model.positions.dtype == torch.int64
        assert model.head.weight is model.embedding.weight, "tied weights came apart"
        assert_close(model(IDS), plain(IDS).detach())


def test_copies_of_models(models: tuple[Any, Any]) -> None:
    plain, model = models
    other = copy.deepcopy(model)
    assert other.head.weight is other.embedding.weight
    assert other.head.weight is not model.head.weight
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.zero_()
    assert_close(model(IDS), plain(IDS).detach())
    empty = copy.deepcopy(model).to_empty(device="cpu")
    assert type(empty.first.weight) is EncryptedTensor
    empty.load_state_dict(plain.state_dict())
    assert torch.equal(empty.first.weight.decrypt(), plain.first.weight)


def test_refusals(models: tuple[Any, Any]) -> None:
    _, model = models
    for work in (model.cuda, lambda: model.to("cuda")):
        with pytest.raises(errors.ArgumentError, match="decrypt_module"):
            work()
    model.requires_grad_(True)
    with pytest.raises(errors.ArgumentError, match="decrypt_module"):
        model(IDS).sum().backward()
    model.train().eval().zero_grad()
    model.requires_grad_(False)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(key: pyccmem.Key, name: str) -> None:
    layer, arguments = LAYERS[name]()
    layer.eval()
    model = encrypt_module(copy.deepcopy(layer), key=key)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            wanted, found = layer(*arguments), model(*arguments)
            if isinstance(wanted, tuple):
                wanted, found = wanted[0], found[0]
            assert_close(found, wanted)


def test_batch_norm_counts_in_training_mode(key: pyccmem.Key) -> None:
    layer = nn.BatchNorm1d(6)
    model = encrypt_module(copy.deepcopy(layer), key=key)
    x = torch.randn(9, 6)
    with torch.no_grad():
        assert_close(model(x), layer(x))
    assert_close(model.running_mean.decrypt(), layer.running_mean)
    assert model.num_batches_tracked.item() == 1


def test_threads_call_one_model(models: tuple[Any, Any]) -> None:
    plain, model = models
    inputs = [(IDS + n) % 50 for n in range(4)]
    wanted = [plain(ids).detach() for ids in inputs]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with torch.no_grad():
                for turn in range(25):
                    ids = inputs[number].repeat(1 + turn % 2 * 9, 1)
                    assert_close(model(ids), wanted[number].repeat(1 + turn % 2 * 9, 1, 1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@support.not_sanitized
def test_a_loader_with_spawned_workers(models: tuple[Any, Any]) -> None:
    plain, model = models
    loader = torch.utils.data.DataLoader(
        IDS, 2, num_workers=1, multiprocessing_context=multiprocessing.get_context("spawn")
    )  # fmt: skip
    with torch.no_grad():
        found = torch.cat([model(ids) for ids in loader])
        assert_close(found, plain(IDS))
