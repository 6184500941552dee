# SPDX-License-Identifier: Apache-2.0
"""The functions of safetensors.torch, over plain and sealed files: tensors, bytes, slices, models.

The kinds of tests are those of safetensors' own (0.8.0, Apache-2.0), which
tests/upstream/safetensors_suite.py runs as they are.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

import pyccmem.safetensors as st
from pyccmem import Key, errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")
stock = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402

from pyccmem.torch import (  # noqa: E402
    EncryptedTensor,
    encrypt_module,
    load,
    load_file,
    load_model,
    save,
    save_file,
    save_model,
)

DTYPES = [
    getattr(torch, name)
    for name in """float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64
    uint64 uint32 uint16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu
    float4_e2m1fn_x2""".split()
    if hasattr(torch, name)
]


def values(dtype: Any, *shape: int) -> Any:
    """A tensor of random bytes."""
    count = torch.empty(shape, dtype=dtype).nbytes
    high = 2 if dtype is torch.bool else 256
    data = torch.randint(0, high, (count,), dtype=torch.uint8)
    return data.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def same(one: Any, other: Any) -> bool:
    """Equal to the bit."""
    return bool(
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(bits(one), bits(other))
    )


def bits(tensor: Any) -> Any:
    plain = tensor.decrypt() if isinstance(tensor, EncryptedTensor) else tensor.detach()
    return plain.contiguous().reshape(-1).view(torch.uint8)


# ---- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, key: Key, dtype: Any) -> None:
    given = {"t": values(dtype, 40, 50), "none": values(dtype, 3, 0), "one": values(dtype, 1)}
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    stock.save_file(given, plain)
    pin = save_file(given, sealed, {"a": "b"}, key=key)
    for path in (plain, sealed):
        found = load_file(path, key=key, expect=pin if path == sealed else None)
        again = load(path.read_bytes(), key=key)
        with st.safe_open(path, "pt", key=key) as file:
            taken = file.get_tensors()
            assert file.metadata() == (None if path == plain else {"a": "b"})
        for name, tensor in given.items():
            for tensors in (found, again, taken):
                assert type(tensors[name]) is EncryptedTensor and same(tensors[name], tensor)
    # And back: what was encrypted is written as it lies.
    assert same(load(save(load_file(sealed, key=key), key=key), key=key)["t"], given["t"])
    st.decrypt_file(sealed, tmp_path / "back", key)
    assert same(stock.load_file(tmp_path / "back")["t"], given["t"])


def test_what_is_written_in_another_order(tmp_path: Path, key: Key) -> None:
    base = torch.randn(300, 700)
    given = {
        "transposed": base.t(),
        "steps": torch.randn(90, 80)[::2, 1::3],
        "expanded": torch.randn(3, 1).expand(3, 5),
        "conjugate": torch.randn(4, 4, dtype=torch.complex64).conj(),
        "encrypted view": EncryptedTensor.from_tensor(base.clone(), key=key)[3:9, 5:].t(),
        "parameter": nn.Parameter(torch.randn(3)),
    }
    pin = save_file(given, tmp_path / "f", key=key)
    assert isinstance(pin, str) and st.inspect_file(tmp_path / "f").pin == pin
    found = load_file(tmp_path / "f", key=key)
    for name, tensor in given.items():
        assert torch.equal(found[name].decrypt(), torch.as_tensor(tensor.detach() + 0)), name
        assert found[name].is_contiguous()


def test_what_cannot_be_saved(tmp_path: Path, key: Key) -> None:
    path, a = tmp_path / "f", torch.arange(6.0).reshape(2, 3)
    encrypted = EncryptedTensor.from_tensor(a, key=key)
    for wrong in (
        *("notadict", None, [a], {"t": {"some": "thing"}}, {"t": None}, {"t": a.numpy()}),
        *({"t": torch.sparse_coo_tensor(size=(2, 3))}, {"t": a.to_sparse()}),
    ):
        for call in (lambda w: save_file(w, path, key=key), lambda w: save(w, key=key)):
            with pytest.raises(errors.TensorTypeError) as caught:
                call(wrong)
            assert isinstance(caught.value, (TypeError, ValueError))
    for shared in (
        *({"a": a, "b": a[:1]}, {"a": a, "b": a[1:]}, {"a": a, "b": a}, {"a": a, "b": a.t()}),
        *({"a": encrypted, "b": encrypted.detach()}, {"a": encrypted, "b": encrypted[1]}),
    ):
        with pytest.raises(errors.StateDictError, match="save_model") as refused:
            save_file(shared, path, key=key)
        assert isinstance(refused.value, RuntimeError)
    with pytest.raises(RuntimeError, match="meta"):
        save_file({"t": torch.zeros(2, device="meta")}, path, key=key)
    for name in ("__metadata__", "__pyccmem_table__", "\ud800"):
        with pytest.raises(errors.ArgumentError):
            save_file({name: a}, path, key=key)
    assert not path.exists()
    # Parts of one memory that do not overlap are no fault.
    save_file({"a": a[1:], "b": a[:1], "e": torch.zeros(0), "f": torch.zeros(0)}, path, key=key)
    assert torch.equal(load_file(path, key=key)["b"].decrypt(), a[:1])


def test_devices_and_frameworks(tmp_path: Path, key: Key) -> None:
    path = tmp_path / "f"
    save_file({"t": torch.ones(3)}, path, key=key)
    for device in ("cpu", torch.device("cpu"), None):
        assert load_file(path, device, key=key)["t"].device.type == "cpu"
    for device in ("cuda", 0, torch.device("meta"), "cuda:1"):
        with pytest.raises(errors.FileRequestError, match="decrypt"):
            load_file(path, device, key=key)
        with pytest.raises(errors.FileRequestError, match="decrypt"):
            load_model(nn.Linear(1, 1), path, device=device, key=key)
    for framework in ("pt", "torch", "pytorch"):
        with st.safe_open(path, framework, key=key) as file:
            assert type(file.get_tensor("t")) is EncryptedTensor
    with pytest.raises(errors.ArgumentError):
        load_file(path, key=key, activations="nonsense")
    assert load_file(path, key=key, activations="wiped")["t"].activations == "wiped"


@pytest.mark.parametrize("kind", ["plain", "sealed"])
def test_slices_are_views_of_ciphertext(tmp_path: Path, key: Key, kind: str) -> None:
    path, a = tmp_path / "f", torch.randn(10, 5)
    if kind == "plain":
        stock.save_file({"a": a}, path)
    else:
        save_file({"a": a}, path, key=key)
    with st.safe_open(path, "pt", key=key) as file:
        part = file.get_slice("a")
        assert part.get_shape() == [10, 5] and part.get_dtype() == "F32"
        for index in (
            *(slice(None), (), Ellipsis, slice(2), (slice(None), slice(2)), (0, slice(2))),
            *((slice(2, None), 0), (slice(2, None), -1), (slice(1, 9, 3), slice(0, 5, 2)), 7),
        ):
            found = part[index]
            assert type(found) is EncryptedTensor and torch.equal(found.decrypt(), a[index])
        assert part[list()].shape == (0, 5)
        for wrong in ((slice(2, None), -6), [0, 1], slice(20), torch.tensor([1, 2])):
            with pytest.raises(st.SafetensorError):
                part[wrong]
        assert save_file({"all": part[:], "part": part[2:5].clone()}, tmp_path / "g", key=key)
    assert torch.equal(load_file(tmp_path / "g", key=key)["part"].decrypt(), a[2:5])


def test_handles(key: Key) -> None:
    a = torch.randn(4, 4)
    for data in (stock.save({"a": a}), save({"a": a}, key=key)):
        with st.safe_open_handle(io.BytesIO(data), "pt", key=key) as file:
            found = file.get_tensor("a")
        assert torch.equal(found.decrypt(), a)


def test_pairs_of_half_bytes_have_no_half(key: Key) -> None:
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("needs a torch with float4_e2m1fn_x2")
    data = save({"t": values(torch.float4_e2m1fn_x2, 2, 3)}, key=key)
    with st.safe_open_handle(io.BytesIO(data), "pt", key=key) as file:
        assert file.info("t").shape == (2, 6)
        with pytest.raises(errors.FileRequestError, match="byte"):
            file.get_slice("t")


# ---- models --------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two names for one module, and a head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.a = nn.Linear(8, 8)
        self.b = self.a
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.norm(self.b(self.a(self.embed(ids)))))


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


IDS = torch.arange(30)


@pytest.mark.parametrize("source", ["plain", "encrypted", "stock"])
@pytest.mark.parametrize("target", ["plain", "encrypted"])
def test_a_model_comes_back_with_what_it_shares(
    tmp_path: Path, key: Key, source: str, target: str
) -> None:
    path, model, other = tmp_path / "f", Tied().eval(), Tied().eval()
    with torch.no_grad():
        model.norm.running_mean.add_(0.5)  # type: ignore[union-attr, operator]
        wanted = model(IDS)
    if source == "stock":
        stock.save_model(model, path)
    else:
        if source == "encrypted":
            encrypt_module(model, key=key)
        pin = save_model(model, path, {"mine": "too", "b.bias": "kept"}, key=key)
        assert st.inspect_file(path).pin == pin
        with st.safe_open(path, key=key) as file:
            assert file.metadata() == {
                "mine": "too",
                "b.bias": "kept",
                "b.weight": "a.weight",
                "head.weight": "embed.weight",
            }
            assert "b.weight" not in file and "head.weight" not in file
    if target == "encrypted":
        encrypt_module(other, key=key)
    assert load_model(other, path, key=key) == ([], [])
    assert other.head.weight is other.embed.weight and other.a.weight is other.b.weight
    assert all(type(tensor) is EncryptedTensor for tensor in other.state_dict().values())
    with torch.no_grad():
        torch.testing.assert_close(other(IDS), wanted)


def test_a_model_keeps_its_dtypes(tmp_path: Path, key: Key) -> None:
    model = Apart().bfloat16()
    save_model(model, tmp_path / "f", key=key)
    other = Apart()
    load_model(other, tmp_path / "f", key=key)
    assert other.a.weight.dtype == torch.float32 and type(other.a.weight) is EncryptedTensor
    assert torch.equal(other.a.weight.decrypt(), model.a.weight.float())
    assert other.a.weight.requires_grad


def test_models_that_do_not_fit(tmp_path: Path, key: Key) -> None:
    tied, apart = tmp_path / "tied", tmp_path / "apart"

    class Both(Apart):
        def __init__(self) -> None:
            super().__init__()
            self.b = self.a

    save_model(Both(), tied, key=key)
    save_model(Apart(), apart, key=key)
    model, both = Apart(), Both()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(errors.StateDictError, match=r'Missing key.*"b.bias", "b.weight"') as caught:
        load_model(model, tied, key=key)
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(errors.StateDictError, match=r'Unexpected key.*"b.bias", "b.weight"'):
        load_model(both, apart, key=key)
    with pytest.raises(errors.StateDictError, match="shape"):
        load_model(nn.Linear(8, 3), _of_linear(tmp_path, key), key=key)
    for name, tensor in model.state_dict().items():
        assert type(tensor) is torch.Tensor and torch.equal(tensor, before[name])
    missing, unexpected = load_model(model, tied, False, key=key)
    assert sorted(missing) == ["b.bias", "b.weight"] and not unexpected
    assert type(model.a.weight) is EncryptedTensor and type(model.b.weight) is nn.Parameter
    missing, unexpected = load_model(both, apart, strict=False, key=key)
    assert not missing and sorted(unexpected) == ["b.bias", "b.weight"]
    assert both.a.weight is both.b.weight
    for wrong in (None, {}, "model", apart):
        with pytest.raises(errors.ArgumentTypeError):
            load_model(wrong, apart, key=key)  # type: ignore[arg-type]
        with pytest.raises(errors.ArgumentTypeError):
            save_model(wrong, apart, key=key)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        load_model(model, tmp_path / "none", key=key)


def _of_linear(place: Path, key: Key) -> Path:
    save_model(nn.Linear(8, 4), place / "linear", key=key)
    return place / "linear"


def test_a_file_that_names_the_other_of_two(tmp_path: Path, key: Key) -> None:
    model, other = Tied(), Tied()
    state = model.state_dict()
    for name in ("a.weight", "a.bias", "embed.weight"):
        del state[name]
    save_file(state, tmp_path / "f", key=key)
    load_model(other, tmp_path / "f", key=key)
    assert torch.equal(other.embed.weight.decrypt(), model.embed.weight)
    assert other.a.weight is other.b.weight


def test_layouts_and_parts_of_models(tmp_path: Path, key: Key) -> None:
    model = nn.Linear(6, 6)
    model.weight = nn.Parameter(torch.randn(6, 6).t())
    with pytest.raises(ValueError, match=r"save_model\(..., force_contiguous=True\)"):
        save_model(model, tmp_path / "f", force_contiguous=False, key=key)
    save_model(model, tmp_path / "f", key=key)
    other = nn.Linear(6, 6)
    load_model(other, tmp_path / "f", key=key)
    assert torch.equal(other.weight.decrypt(), model.weight)
    memory = torch.randn(20)
    model.weight, model.bias = nn.Parameter(memory[:12]), nn.Parameter(memory[8:])
    with pytest.raises(errors.StateDictError, match="none of them"):
        save_model(model, tmp_path / "g", key=key)
    model.weight, model.bias = nn.Parameter(memory), nn.Parameter(memory[8:])
    save_model(model, tmp_path / "g", key=key)
    with pytest.raises(errors.StateDictError, match="a part of"):
        load_model(model, tmp_path / "g", key=key)
    assert not (tmp_path / "none").exists()


def test_extra_state_is_no_tensor(tmp_path: Path, key: Key) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"steps": 5}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(errors.TensorTypeError, match="_extra_state"):
        save_model(Extra(3, 2), tmp_path / "f", key=key)
    save_model(nn.Linear(3, 2), tmp_path / "f", key=key)
    model = Extra(3, 2)
    assert load_model(model, tmp_path / "f", key=key) == ([], [])
    assert type(model.weight) is EncryptedTensor


def test_recurrent_layers_use_what_was_loaded(tmp_path: Path, key: Key) -> None:
    one, other = nn.LSTM(3, 4).eval(), nn.LSTM(3, 4).eval()
    save_model(one, tmp_path / "f", key=key)
    load_model(other, tmp_path / "f", key=key)
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(other(x)[0], one(x)[0])


def test_readers_of_stock_see_no_weights(tmp_path: Path, key: Key) -> None:
    model = Apart()
    save_model(model, tmp_path / "f", key=key)
    found = stock.load_file(tmp_path / "f")
    assert all(tensor.dtype == torch.uint8 for tensor in found.values())
    weight = model.a.weight.detach().numpy().tobytes()
    assert weight not in (tmp_path / "f").read_bytes()
    assert weight in stock.save(model.state_dict()), "the control"
