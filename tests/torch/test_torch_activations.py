# SPDX-License-Identifier: Apache-2.0
"""activations="wiped": where results lie, that they are the same, and that their memory comes back.

What is left of them in memory, another process looks for in test_torch_activations_memory.
"""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support

import pyccmem

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_support import IDS, Model  # noqa: E402

import pyccmem.torch as encrypted  # noqa: E402
from pyccmem import errors  # noqa: E402
from pyccmem.binding import wiped  # noqa: E402
from pyccmem.torch import EncryptedTensor, encrypt_module, set_activations  # noqa: E402
from pyccmem.torch._results import pooled  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def in_pool(tensor: Any) -> bool:
    """Whether a tensor lies in memory that dumps leave out and forks find zeroed; Linux says."""
    address, here = tensor.data_ptr(), False
    with open("/proc/self/smaps", encoding="ascii") as lines:
        for line in lines:
            first, *rest = line.split()
            if not first.endswith(":"):
                start, end = (int(part, 16) for part in first.split("-"))
                here = start <= address < end
            elif here and first == "VmFlags:":
                return {"dd", "wf"} <= set(rest)
    raise AssertionError(f"no mapping has {address:#x}")


def tensors(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def operations(kind: Any) -> dict[str, Callable[[Any], Any]]:
    """What is done with an encrypted matrix of 64 x 32, by name."""
    random = torch.Generator().manual_seed(7)
    x = torch.randn(5, 32, generator=random).to(kind)
    y = torch.randn(3, 64, generator=random).to(kind)
    bias = torch.randn(64, generator=random).to(kind)
    turned = torch.randn(32, 70, generator=random).to(kind).t()
    return {
        "linear": lambda w: F.linear(x, w),
        "bias": lambda w: F.linear(x, w, bias),
        "of three dimensions": lambda w: F.linear(x[None].expand(2, 5, 32), w),
        "of one": lambda w: F.linear(x[0], w),
        "of none": lambda w: F.linear(x[:0], w),
        "transposed": lambda w: F.linear(turned, w),
        "columns": lambda w: y @ w,
        "rows": lambda w: x @ w.t(),
        "mv": lambda w: w @ x[0],
        "mv of columns": lambda w: w.t() @ y[0],
        "addmm": lambda w: torch.addmm(bias, x, w.t()),
        "addmm, scaled": lambda w: torch.addmm(bias, x, w.t(), alpha=2),
        "part": lambda w: F.linear(x, w[8:24]),
        "embedding": lambda w: F.embedding(torch.tensor([[1, 2], [3, 63]]), w),
        "index": lambda w: w[torch.tensor([0, -1, -64, 5], dtype=torch.int32)],
        "index_select": lambda w: w.index_select(0, torch.tensor([[1, 63]]).t()[:, 0]),
        "mul": lambda w: w * 3,
        "rmul": lambda w: 3 * w,
        "add": lambda w: w + w,
        "layer_norm": lambda w: F.layer_norm(x, (32,), w[0], w[1]),
        "softmax": lambda w: w.softmax(-1),
        "views of one result": lambda w: torch.split(w * 1, 16),
        "sum": lambda w: w.sum(),
        "conv2d": lambda w: F.conv2d(torch.ones(2, 32, 4, 4).to(kind), w.view(64, 32, 1, 1)),
        "channels last": lambda w: F.conv2d(
            torch.ones(2, 32, 4, 4).to(kind).to(memory_format=torch.channels_last),
            w.view(64, 32, 1, 1),
        ),
        "bmm": lambda w: torch.bmm(y[None], w[None]),
        "embedding_bag": lambda w: F.embedding_bag(torch.tensor([[1, 2], [3, 4]]), w),
        "several results": lambda w: w.topk(3),
        "numbers of elements": lambda w: w.nonzero(),
        "batch_norm": lambda w: F.batch_norm(x, None, None, w[0], w[1], training=True),
        "einsum": lambda w: torch.einsum("ni,oi->no", x, w),
        "cat": lambda w: torch.cat([w, w]),
    }


#: Whose results lie in the pool in any case.
ALWAYS = {"embedding", "index", "index_select"}


@support.linux_only
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("kind", DTYPES)
def test_results(key: pyccmem.Key, kind: Any, mode: Any) -> None:
    """Equal bit for bit to those of the twin, of the same form, in the pool; and the twin's are
    not."""
    values = torch.randn(64, 32, generator=torch.Generator().manual_seed(3)).to(kind)
    plain = EncryptedTensor.from_tensor(values, key=key)
    tensor = EncryptedTensor.from_tensor(values, key=key, activations="wiped")
    assert (plain.activations, tensor.activations) == ("plain", "wiped")
    gc.collect()  # what other tests have left
    before = wiped.stats()
    with mode():
        for name, operation in operations(kind).items():
            wanted, got = tensors(operation(plain)), tensors(operation(tensor))
            assert len(wanted) == len(got)
            for one, other in zip(wanted, got, strict=True):
                assert type(other) is torch.Tensor, name
                assert torch.equal(one, other), name
                assert (one.dtype, one.stride()) == (other.dtype, other.stride()), name
                assert one._is_view() == other._is_view(), name
                if one.numel():
                    assert in_pool(other), name
                    assert in_pool(one) == (name in ALWAYS), name
    del wanted, got, one, other
    gc.collect()
    after = wiped.stats()
    assert after["plain_in_use"] == before["plain_in_use"]
    assert after["plain_blocks"] == before["plain_blocks"]


@support.linux_only
def test_wiped_when_the_last_user_goes(key: pyccmem.Key) -> None:
    """A view or an array of a result keeps its memory; then it reads as zeros."""
    weight = EncryptedTensor.from_tensor(torch.eye(128), key=key, activations="wiped")
    x = torch.rand(300, 128) + 1
    x_bytes = x.numpy().tobytes()

    def reads() -> bytes:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(len(x_bytes))

    with torch.no_grad():
        result = F.linear(x, weight)
    address = result.data_ptr()
    view = result[200:]
    del result
    assert reads() == x_bytes
    array = view.numpy()
    del view
    assert reads() == x_bytes
    assert (array == x[200:].numpy()).all()
    del array
    # The pool keeps a block of this size for the next one.
    assert reads() == bytes(len(x_bytes))


def test_what_torch_had_is_overwritten() -> None:
    """A result of torch's own memory, and its views, are moved together; arguments stay."""
    given = torch.rand(10)
    result = torch.rand(4, 6)
    held, wanted = result.view(-1), result.clone()
    moved = pooled({"a": result, "b": [result.t(), given[2:], 3, None]}, ((given,), {}))
    assert torch.equal(moved["a"], wanted) and torch.equal(moved["b"][0], wanted.t())
    assert moved["b"][0].data_ptr() == moved["a"].data_ptr() != held.data_ptr()
    assert moved["b"][1].data_ptr() == given[2:].data_ptr() and moved["b"][2:] == [3, None]
    assert not held.any() and given.any()


def test_a_budget_that_is_too_small(key: pyccmem.Key) -> None:
    """PlaintextBudgetError, nothing left in the pool, and what torch computed overwritten."""
    weight = EncryptedTensor.from_tensor(torch.eye(64), key=key, activations="wiped")
    x = torch.rand(2000, 64)
    result = torch.rand(1000, 64)
    held = result.view(-1)
    before = wiped.stats()["plain_blocks"]
    pyccmem.set_plaintext_budget(200_000)
    try:
        with torch.no_grad(), pytest.raises(errors.PlaintextBudgetError):
            F.linear(x, weight)
        with torch.no_grad(), pytest.raises(errors.PlaintextBudgetError):
            x * weight[0]
        with pytest.raises(errors.PlaintextBudgetError):
            pooled(result, ())
    finally:
        pyccmem.set_plaintext_budget(None)
    assert not held.any()
    gc.collect()
    assert wiped.stats()["plain_blocks"] == before
    with torch.no_grad():
        assert torch.equal(F.linear(x, weight), x)


def test_damage_gives_nothing(key: pyccmem.Key) -> None:
    weight = EncryptedTensor.from_tensor(torch.rand(64, 64), key=key, activations="wiped")
    support.damage(weight.core.buffer, 1)
    before = wiped.stats()["plain_blocks"]
    with torch.no_grad():
        for work in (F.linear, torch.mm, torch.mul):
            with pytest.raises(errors.IntegrityError):
                work(torch.ones(64, 64), weight)
    gc.collect()
    assert wiped.stats()["plain_blocks"] == before


def test_arguments_stay_where_they_are(key: pyccmem.Key) -> None:
    """What an operation returns of its arguments is theirs, and is not overwritten."""
    weight = EncryptedTensor.from_tensor(torch.full((4, 4), 2.0), key=key, activations="wiped")
    x, out = torch.ones(4, 4), torch.zeros(4, 4)
    with torch.no_grad():
        assert torch.add(x, weight, out=out).data_ptr() == out.data_ptr()
        assert torch.mm(x, weight, out=out).data_ptr() == out.data_ptr()
        assert (out == 8).all() and (x == 1).all()
        assert x.add_(weight) is x and (x == 3).all()
        spread, _ = torch.broadcast_tensors(x[0], weight)
        assert spread.data_ptr() == x.data_ptr() and (x == 3).all()
        assert weight.mul_(3) is weight and (weight.decrypt() == 6).all()
        values, numbers = torch.sort(x, out=(out, torch.empty(0, dtype=torch.int64)))
        assert values is out and (numbers.sort().values == torch.arange(4)).all()


# ---- models --------------------------------------------------------------------------------------


@support.linux_only
def test_model(key: pyccmem.Key) -> None:
    plain = encrypt_module(Model().eval(), key=key)
    model = copy.deepcopy(plain)
    set_activations(model, "wiped")
    assert {p.activations for p in model.parameters()} == {"wiped"}
    assert {p.activations for p in plain.parameters()} == {"plain"}
    before = wiped.stats()["plain_in_use"]
    with torch.no_grad():
        result = model(IDS)
        assert torch.equal(result, plain(IDS))
    assert in_pool(result) and not in_pool(plain(IDS))
    assert wiped.stats()["plain_in_use"] > before
    del result
    gc.collect()
    assert wiped.stats()["plain_in_use"] == before
    set_activations(model, "plain")
    with torch.no_grad():
        assert not in_pool(model(IDS))


def test_it_stays_with_the_tensors(key: pyccmem.Key, tmp_path: Path) -> None:
    model = encrypt_module(Model(), key=key, activations="wiped")
    weight: Any = model.first.weight
    for tensor in (
        *model.parameters(),
        *model.buffers(),
        copy.deepcopy(weight),
        copy.copy(weight),
        weight.clone(),
        weight.half(),
        weight.t().clone(),
        weight[2:5],
        weight.detach(),
        torch.empty_like(weight),
        model.state_dict()["first.weight"],
        copy.deepcopy(model).double().head.weight,
    ):
        assert tensor.activations == "wiped"
    # Another part of the same data.
    set_activations(weight[2:5], "plain")
    assert weight.activations == "plain" and model.second.weight.activations == "wiped"

    path = tmp_path / "model.sealed"
    encrypted.save_file({"w": weight}, path, key=key)
    loaded = encrypted.load_file(path, key=key, activations="wiped")["w"]
    assert loaded.activations == "wiped"
    assert encrypted.load_file(path, key=key)["w"].activations == "plain"
    # A write gives it a store of its own.
    loaded.mul_(2)
    assert loaded.activations == "wiped"
    assert EncryptedTensor.from_core(weight.core, activations="wiped").activations == "wiped"


@pytest.mark.parametrize("value", ["wipe", "", "WIPED", None, True, b"wiped", 1, ["wiped"]])
def test_other_values_are_refused(key: pyccmem.Key, tmp_path: Path, value: Any) -> None:
    """Before anything is changed."""
    model = nn.Linear(3, 4)
    tensor = EncryptedTensor.from_tensor(torch.ones(3), key=key)
    path = tmp_path / "t.sealed"
    encrypted.save_file({"t": tensor}, path, key=key)
    for work in (
        lambda: encrypt_module(model, key=key, activations=value),
        lambda: EncryptedTensor.from_tensor(torch.ones(3), key=key, activations=value),
        lambda: EncryptedTensor.from_core(tensor.core, activations=value),
        lambda: encrypted.load_file(path, key=key, activations=value),
        lambda: set_activations(model, value),
        lambda: set_activations(tensor, value),
    ):
        with pytest.raises(errors.ArgumentError, match=r"'plain'.*'wiped'"):
            work()
    assert type(model.weight) is nn.Parameter and tensor.activations == "plain"


def test_other_targets_are_refused(key: pyccmem.Key) -> None:
    for target in (torch.ones(3), None, [nn.Linear(2, 2)]):
        with pytest.raises(errors.ArgumentTypeError):
            set_activations(target, "wiped")
    model = encrypt_module(nn.Linear(3, 4), key=key)
    model.bias.core.close()
    with pytest.raises(errors.ClosedError):
        set_activations(model, "wiped")
    assert model.weight.activations == "plain"


# ---- gradients, compiled programs, forks, threads ------------------------------------------------


@support.linux_only
def test_gradients_of_inputs(key: pyccmem.Key) -> None:
    """The same bits; what autograd keeps is the encrypted weight."""
    found = {}
    plain = encrypt_module(Model().eval(), key=key)
    for activations in ("plain", "wiped"):
        model = copy.deepcopy(plain)
        set_activations(model, activations)
        torch.manual_seed(2)
        front = nn.Linear(32, 32)
        result = model.norm(model.first(front(torch.ones(3, 32)))) @ model.first.weight
        assert result.requires_grad and result.is_leaf is False
        result.sum().backward()
        found[activations] = (result.detach(), front.weight.grad, front.bias.grad)
    assert in_pool(found["wiped"][0]) and not in_pool(found["plain"][0])
    for one, other in zip(found["plain"], found["wiped"], strict=True):
        assert torch.equal(one, other)


def test_results_are_no_views(key: pyccmem.Key) -> None:
    """Torch refuses to change a view that was made without gradients in place with them."""
    for kind in DTYPES:
        values = torch.rand(6, 4).to(kind)
        weight = EncryptedTensor.from_tensor(values, key=key, activations="wiped")
        with torch.no_grad():
            results = [
                F.linear(torch.ones(2, 3, 4, dtype=kind), weight),
                torch.ones(2, 6, dtype=kind) @ weight,
                weight * 2,
                F.embedding(torch.tensor([1, 2]), weight),
            ]
        for result in results:
            result.mul_(torch.ones((), dtype=kind, requires_grad=True))
            assert result.requires_grad


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@support.linux_only
def test_compiled(key: pyccmem.Key, backend: str) -> None:
    """What pyccmem's operators return in a program follows the tensors, without a new program."""
    torch._dynamo.reset()
    weight = EncryptedTensor.from_tensor(torch.rand(8, 4), key=key)
    programs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal programs
        programs += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    @torch.compile(fullgraph=True, backend=count)
    def work(x: Any, w: Any, ids: Any) -> Any:
        return F.linear(x, w), x @ w.t(), F.embedding(ids, w), torch.ones(3, 8) @ w

    x, ids = torch.rand(3, 4), torch.tensor([1, 7])
    try:
        with torch.no_grad():
            before = work(x, weight, ids)
            set_activations(weight, "wiped")
            after = work(x, weight, ids)
        assert programs == 1
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one, other)
        assert [in_pool(tensor) for tensor in before] == [False, False, True, False]
        assert all(in_pool(tensor) for tensor in after)
    finally:
        torch._dynamo.reset()


@support.linux_only
def test_a_child_finds_zeros(key: pyccmem.Key) -> None:
    weight = EncryptedTensor.from_tensor(torch.eye(64), key=key, activations="wiped")
    with torch.no_grad():
        result, plain = F.linear(torch.ones(64, 64), weight), torch.ones(64, 64)

    def child() -> None:
        assert plain.numpy().all()
        assert not result.numpy().any()

    support.in_forked_child(child)
    assert result.all()


def test_threads(key: pyccmem.Key) -> None:
    model = encrypt_module(Model().eval(), key=key, activations="wiped")
    before = wiped.stats()["plain_blocks"]
    with torch.no_grad():
        wanted = model(IDS).tolist()

    def work() -> None:
        with torch.no_grad():
            for _ in range(20):
                assert model(IDS).tolist() == wanted

    support.run_threads([work] * 4)
    gc.collect()
    assert wiped.stats()["plain_blocks"] == before


def test_saving_a_result(key: pyccmem.Key, tmp_path: Path) -> None:
    """A result is an ordinary tensor: saved, copied, put into shared memory."""
    weight = EncryptedTensor.from_tensor(torch.eye(8), key=key, activations="wiped")
    with torch.no_grad():
        result = F.linear(torch.rand(3, 8), weight)
    wanted = result.clone()
    torch.save(result, tmp_path / "result.pt")
    assert torch.equal(torch.load(tmp_path / "result.pt"), wanted)
    assert torch.equal(copy.deepcopy(result), wanted)
    assert torch.equal(result.share_memory_(), wanted)
    assert os.path.getsize(tmp_path / "result.pt") > 0
