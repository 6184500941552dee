# SPDX-License-Identifier: Apache-2.0
"""Other data for a tensor: `.data`, set_(), resize_(), views in place, what torch's own tools do
with these; load_state_dict() by copying and by assigning; what savers of others say."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyccmem
from pyccmem import errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch import nn  # noqa: E402
from torch_support import IDS, LAYERS, Model, assert_close, sealed  # noqa: E402

from pyccmem.torch import (  # noqa: E402
    EncryptedTensor,
    decrypt_module,
    encrypt_module,
    load_file,
    save_file,
)

# ---- assignments ---------------------------------------------------------------------------------


def base() -> Any:
    return torch.arange(24.0).view(6, 4)


ASSIGNED: dict[str, Callable[[Any], Any]] = {
    "same": lambda t: base() * 2,
    "shape": lambda t: torch.ones(3, 5),
    "type": lambda t: base().bfloat16(),
    "strided": lambda t: base().t() + 1,
    "transposed": lambda t: base().t(),
    "large": lambda t: torch.randn(900, 700).t(),
    "empty": lambda t: torch.empty(0, 4),
    "computed": lambda t: torch.nn.functional.pad(t.data, (0, 1)),
    "parameter": lambda t: nn.Parameter(base() + 3),
}


@pytest.mark.parametrize("name", ASSIGNED)
def test_data_takes_plain_values_and_encrypts_them(key: pyccmem.Key, name: str) -> None:
    """As torch does with plain tensors: other users of the old data keep that."""
    plain = nn.Parameter(base(), requires_grad=False)
    found = nn.Parameter(sealed(base(), key), requires_grad=False)
    for parameter in (plain, found):
        old = parameter.detach()
        torch.manual_seed(1)
        parameter.data = ASSIGNED[name](parameter)
        assert torch.equal(old + 0, base())
    assert (found.shape, found.dtype) == (plain.shape, plain.dtype)
    assert isinstance(found, nn.Parameter) and type(found) is EncryptedTensor
    assert torch.equal(found.decrypt(), plain)
    assert found.core.cipher == sealed(base(), key).core.cipher and not found._path


def test_what_was_assigned_is_a_copy(key: pyccmem.Key) -> None:
    t, value = sealed(base(), key), torch.ones(2)
    t.data = value
    value.zero_()
    assert torch.equal(t.decrypt(), torch.ones(2))
    t.add_(1)
    assert torch.equal(value, torch.zeros(2))


CHANGED: dict[str, Callable[[Any], Any]] = {
    "set_": lambda t: t.set_(torch.ones(2, 2)),
    "set_ of a part": lambda t: t.set_(base().untyped_storage(), 1, (2,), (3,)),
    "set_ of nothing": lambda t: t.set_(),
    "resize_ less": lambda t: t.resize_(3, 2),
    "resize_ the same": lambda t: t.resize_((4, 6)),
    "resize_ not at all": lambda t: t.resize_(6, 4),
    "resize_as_": lambda t: t.resize_as_(torch.empty(5, 2)),
    "t_": lambda t: t.t_(),
    "transpose_": lambda t: t.transpose_(0, 1),
    "unsqueeze_": lambda t: t.unsqueeze_(0),
    "squeeze_": lambda t: t.unsqueeze_(1).squeeze_(),
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_ways_to_other_data(key: pyccmem.Key, name: str) -> None:
    plain, found = base(), sealed(base(), key)
    assert CHANGED[name](plain) is plain and CHANGED[name](found) is found
    assert found.shape == plain.shape and type(found) is EncryptedTensor
    assert torch.equal(found.decrypt(), plain)
    found.zero_()
    assert torch.equal(found.decrypt(), torch.zeros(plain.shape))


def test_resize_to_more_gives_zeros(key: pyccmem.Key) -> None:
    t = sealed(base(), key)
    alias = t.detach()
    t.resize_(5, 6)
    assert torch.equal(t.decrypt().flatten(), torch.cat([base().flatten(), torch.zeros(6)]))
    assert torch.equal(alias.decrypt(), base())
    with pytest.raises(errors.ArgumentError, match="clone"):
        t[1:].resize_(99)


def test_what_cannot_be_meant_is_refused(key: pyccmem.Key) -> None:
    t = sealed(base(), key)
    for value in (torch.ones(2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(errors.ArgumentTypeError):
            t.data = value
    with pytest.raises(TypeError):
        t.data = 3
    with pytest.raises(errors.ArgumentError, match="copy_"):
        torch.zeros(2).set_(t)
    with pytest.raises(RuntimeError):
        t.set_(torch.ones(2).double())
    assert torch.equal(t.decrypt(), base())


def test_a_failed_assignment_changes_nothing(
    key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyccmem.torch._stored import Stored

    def no_memory(*_: Any, **__: Any) -> Any:
        raise errors.OutOfMemoryError("no")

    t = sealed(base(), key)
    monkeypatch.setattr(Stored, "empty", no_memory)
    for work in (lambda: setattr(t, "data", torch.ones(2)), lambda: t.resize_(99)):
        with pytest.raises(errors.OutOfMemoryError):
            work()
        assert t.shape == (6, 4) and torch.equal(t.decrypt(), base())


def test_an_interrupt_between_form_and_data(
    key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyccmem.torch.ops import assign

    share, calls = assign.share, []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        share(*args)

    t = sealed(base(), key)
    monkeypatch.setattr(assign, "share", interrupted)
    with pytest.raises(KeyboardInterrupt):
        t.data = torch.ones(2)
    assert t.shape == (2,) and torch.equal(t.decrypt(), torch.ones(2))


# ---- what uses them ------------------------------------------------------------------------------


def test_vector_to_parameters(key: pyccmem.Key) -> None:
    model = encrypt_module(Model(), key=key)
    size = sum(p.numel() for p in model.parameters())
    vector = torch.arange(float(size)) / size
    nn.utils.vector_to_parameters(vector, model.parameters())
    assert all(type(p) is EncryptedTensor for p in model.parameters())
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), vector)


def test_memory_formats_and_swapped_tensors(key: pyccmem.Key) -> None:
    plain = nn.Conv2d(3, 4, 3)
    conv = encrypt_module(copy.deepcopy(plain), key=key)
    nn.utils.convert_conv2d_weight_memory_format(conv, torch.channels_last)
    assert type(conv.weight) is EncryptedTensor
    assert torch.equal(conv.weight.decrypt(), plain.weight)
    one, two = (nn.Parameter(t, False) for t in (sealed(base(), key), torch.zeros(3)))
    torch.utils.swap_tensors(one, two)
    assert type(one) is nn.Parameter and torch.equal(one, torch.zeros(3))
    assert type(two) is EncryptedTensor and torch.equal(two.decrypt(), base())


def test_copies_over_a_file_share_its_pages_until_written(key: pyccmem.Key, tmp_path: Path) -> None:
    save_file({"t": base()}, tmp_path / "t.safetensors", key=key)
    t = load_file(tmp_path / "t.safetensors", key=key)["t"]
    before = t.core.buffer.stats()["pages_opened"]
    copies = [t.clone(), copy.deepcopy(t), torch.nn.functional.pad(t, (0, 0))]
    assert all(c.core is t.core for c in copies)
    assert t.core.buffer.stats()["pages_opened"] == before
    copies[0].fill_(1)
    copies[1].fill_(2)
    t.fill_(3)
    for found, value in zip((copies[0], copies[1], t), (1.0, 2.0, 3.0), strict=True):
        assert torch.equal(found.decrypt(), torch.full((6, 4), value))
    assert torch.equal(copies[2].decrypt(), base())


# ---- load_state_dict() ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cpu", "meta"])
@pytest.mark.parametrize("name", [*LAYERS, "model"])
def test_assigned_from_a_file(key: pyccmem.Key, tmp_path: Path, name: str, place: str) -> None:
    """What users of load_file() write first. Parameters then ask for gradients, as plain ones do:
    outputs are right in every mode, and a backward pass that reaches one is refused."""
    made = (lambda: (Model(), (IDS,))) if name == "model" else LAYERS[name]
    layer, arguments = made()
    state = {name: tensor.clone() for name, tensor in layer.eval().state_dict().items()}
    save_file(state, tmp_path / "m.safetensors", key=key)  # of tied ones each
    model = made()[0].eval().to(place)
    loaded = load_file(tmp_path / "m.safetensors", key=key)
    model.load_state_dict(loaded, assign=True)
    if name == "model":
        model.scale = layer.scale  # not a part of the state
    for tensor in model.parameters():
        assert type(tensor) is EncryptedTensor and isinstance(tensor, nn.Parameter)
    assert all(type(t) is EncryptedTensor for t in model.state_dict().values())
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            wanted, found = layer(*arguments), model(*arguments)
            if isinstance(wanted, tuple):
                wanted, found = wanted[0], found[0]
            assert_close(found.detach(), wanted.detach())
    with pytest.raises(errors.ArgumentError, match="decrypt_module"):
        found.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    decrypt_module(model)
    result = model(*arguments)
    (result[0] if isinstance(result, tuple) else result).sum().backward()
    assert any(p.grad is not None for p in model.parameters())


def test_gradients_of_plain_parts_beside_encrypted_ones(key: pyccmem.Key) -> None:
    """Training in front of and behind frozen ciphertext gives the plain model's gradients."""
    plain = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 6), nn.LayerNorm(6))
    plain.append(nn.Linear(6, 3))
    model = copy.deepcopy(plain)
    for part in (model[2], model[3]):
        encrypt_module(part, key=key)
    x = torch.randn(4, 5)
    for one in (plain, model):
        one(x).pow(2).sum().backward()
    for number in (0, 4):
        torch.testing.assert_close(model[number].weight.grad, plain[number].weight.grad)
    model[2].weight.requires_grad_(True)
    with pytest.raises(errors.ArgumentError, match="takes no gradient"):
        model(x).sum().backward()
    model[2].weight.requires_grad_(False)
    model(x).sum().backward()
    with pytest.raises(errors.ArgumentError):
        weight = model[2].weight.requires_grad_(True)
        torch.autograd.grad(model(x).sum(), [weight])


@pytest.mark.parametrize("how", ["linear", "view", "norm", "times", "embedding"])
def test_every_way_to_a_gradient_is_refused(key: pyccmem.Key, how: str) -> None:
    w = nn.Parameter(sealed(torch.randn(4, 4), key))
    x = torch.ones(2, 4)
    ways: dict[str, Callable[[], Any]] = {
        "linear": lambda: nn.functional.linear(x, w),
        "view": lambda: nn.functional.linear(x, w[1:3]),
        "norm": lambda: nn.functional.layer_norm(x, (4,), w[0]),
        "times": lambda: x @ w * 3,
        "embedding": lambda: nn.functional.embedding(torch.tensor([1, 3]), w),
    }
    result = ways[how]()
    assert result.requires_grad
    with pytest.raises(errors.ArgumentError, match="takes no gradient"):
        result.sum().backward()
    with torch.no_grad():
        assert not ways[how]().requires_grad


def test_the_flag_follows_copies(key: pyccmem.Key) -> None:
    w = nn.Parameter(sealed(torch.ones(2), key))
    for new in (copy.copy(w), copy.deepcopy(w)):
        assert new.requires_grad and isinstance(new, nn.Parameter)
        with pytest.raises(errors.ArgumentError):
            (new * 2).sum().backward()
    assert not w.detach().requires_grad and not copy.copy(w.detach()).requires_grad
    with pytest.raises(RuntimeError, match="floating"):
        sealed(torch.ones(2, dtype=torch.int64), key).requires_grad_()


def test_a_plain_model_filled_from_encrypted_tensors_is_told_of(key: pyccmem.Key) -> None:
    state = encrypt_module(nn.Linear(3, 3), key=key).state_dict()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            nn.Linear(3, 3).load_state_dict(state)
    assert [w.category for w in caught] == [errors.PlainTensorsWarning]
    assert "assign=True" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.Linear(3, 3).load_state_dict(state, assign=True)
        encrypt_module(nn.Linear(3, 3), key=key).load_state_dict(state)
        encrypt_module(nn.Linear(3, 3), key=key).load_state_dict(nn.Linear(3, 3).state_dict())
        torch.empty(3, 3).copy_(state["weight"])


# ---- savers of others ----------------------------------------------------------------------------


def _savers(model: Any, place: Path) -> dict[str, Callable[[], Any]]:
    stock = pytest.importorskip("safetensors.torch")
    hub = pytest.importorskip("huggingface_hub")
    state = dict(model.state_dict())
    for name in "cd":
        (place / name).mkdir(exist_ok=True)

    class Mixed(nn.Sequential, hub.PyTorchModelHubMixin):  # type: ignore[misc,name-defined]
        pass

    return {
        "save": lambda: stock.save(state),
        "save_file": lambda: stock.save_file(state, place / "a"),
        "save_model": lambda: stock.save_model(model, str(place / "b")),
        "hub": lambda: hub.save_torch_model(model, place / "c"),
        "hub's state": lambda: hub.save_torch_state_dict(state, place / "d"),
        "mixin": lambda: Mixed(*model).save_pretrained(place / "e"),
        "storage": lambda: model[0].weight.storage().data_ptr(),
        "untyped storage": lambda: model[0].weight.untyped_storage().data_ptr(),
    }


def test_savers_of_others_say_what_to_call(key: pyccmem.Key, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    plain = model[0].weight.detach().numpy().tobytes()
    for name, save in _savers(model, tmp_path).items():
        save()
        assert name.endswith("storage") or name == "save" or any(tmp_path.rglob("*")), name
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(plain in path.read_bytes() for path in written), "the control finds nothing"
    for path in written:
        path.unlink()
    encrypt_module(model, key=key)
    for name, save in _savers(model, tmp_path).items():
        with pytest.raises(errors.ArgumentError, match=r"pyccmem\.torch\.save_file"):
            save()
            pytest.fail(name)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or plain not in path.read_bytes()


def test_the_error_of_an_address_is_one_of_what_is_not_there(key: pyccmem.Key) -> None:
    """PEFT takes a NotImplementedError for a tensor without an address."""
    with pytest.raises(NotImplementedError) as caught:
        sealed(base(), key).data_ptr()
    assert type(caught.value) is errors.NoAddressError
