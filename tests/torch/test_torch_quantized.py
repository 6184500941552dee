# SPDX-License-Identifier: Apache-2.0
"""Modules of torch whose weights are encrypted blocks."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from secret_search import child, find  # noqa: E402
from support import damage  # noqa: E402

import pyccmem  # noqa: E402
import pyccmem.torch as ours  # noqa: E402
from pyccmem import errors  # noqa: E402
from pyccmem.binding import lib, wiped  # noqa: E402
from pyccmem.checkpoints import ArrayPart, quantized_weights  # noqa: E402
from pyccmem.torch import _linear  # noqa: E402
from pyccmem.torch._quantize import from_packing  # noqa: E402

FORMATS = ["q4_0", "q8_0", "q4_k", "q6_k", "int4_g64", "int8_g32", "int8_row"]


class Net(torch.nn.Module):
    """Two linear layers between an embedding and a head that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words = torch.nn.Embedding(70, 256)
        self.up = torch.nn.Linear(256, 512)
        self.down = torch.nn.Linear(512, 256)
        self.norm = torch.nn.LayerNorm(256)
        self.head = torch.nn.Linear(256, 70, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.norm(self.down(torch.relu(self.up(self.words(ids))))))


IDS = torch.tensor([[0, 3, 69, 3], [1, 2, 5, 60]])


@pytest.fixture
def key() -> Any:
    with pyccmem.Key.generate() as key:
        yield key


def net(key: Any, format: Any = "q4_k", dtype: Any = torch.float32, **options: Any) -> Any:
    return ours.encrypt_module(Net().to(dtype).eval(), key=key, quantize=format, **options)


def run(model: Any, ids: Any = IDS) -> Any:
    with torch.inference_mode():
        return model(ids)


# ---- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", FORMATS)
def test_products_are_those_of_the_values(format: str, dtype: Any, key: Any) -> None:
    """Within what inputs of 8 bits cost: each input is off by at most 1/127 of the largest in its
    block, half of that by rounding."""
    model = net(key, format, dtype)
    layer = model.up
    assert layer.weight.format == format and layer.weight.dtype == dtype
    values = layer.weight.core.dequantize().astype(np.float64)
    for lines in (1, 3, 40):
        x = torch.randn(lines, 256, dtype=dtype)
        with torch.inference_mode():
            got = layer(x)
        assert got.dtype == dtype and got.shape == (lines, 512)
        wide = x.double().numpy()
        exact = wide @ values.T + layer.bias.decrypt().double().numpy()
        most = np.abs(wide).max(axis=1, keepdims=True) / 127
        bound = most * np.abs(values).sum(axis=1) + 1e-5
        rounded = np.abs(exact) * {torch.bfloat16: 2**-7, torch.float16: 2**-9}.get(dtype, 0)
        assert (np.abs(got.double().numpy() - exact) <= bound + rounded).all()


@pytest.mark.parametrize("format", ["q8_0", "q4_k", "int8_row"])
def test_rows_of_an_embedding(format: str, key: Any) -> None:
    model = net(key, format)
    values = torch.from_numpy(model.words.weight.core.dequantize())
    with torch.inference_mode():
        assert torch.equal(model.words(IDS), values[IDS])
        assert torch.equal(model.words.weight[torch.tensor([-1, 0])], values[[-1, 0]])
        with pytest.raises(IndexError):
            model.words(torch.tensor([70]))
        assert model.words(torch.empty(0, dtype=torch.int64)).shape == (0, 256)


def test_views_and_other_operations(key: Any) -> None:
    """A view multiplies as a part; what has no way of its own opens the tensor."""
    weight = net(key, "q4_k").up.weight
    values = torch.from_numpy(weight.core.dequantize())
    x = torch.randn(2, 256)
    with torch.inference_mode():
        half = weight[100:300]
        assert half.format == "q4_k"
        linear = torch.nn.functional.linear
        assert torch.allclose(linear(x, half), x @ values[100:300].t(), atol=0.1)
        assert torch.allclose(x @ weight.t(), x @ values.t(), atol=0.1)
        y = torch.randn(2, 512)
        assert torch.allclose(y @ weight, y @ values, atol=0.1)
        assert torch.equal(weight[3, 5:9], values[3, 5:9])
        assert torch.equal(weight + 1, values + 1)
        assert torch.equal(weight.sum(0), values.sum(0))
        assert np.array_equal(weight.numpy(), values.numpy())
        assert torch.equal(weight.decrypt(), values)
        assert torch.equal(weight.view(2, 256, 256)[1].decrypt(), values[256:])


def test_columns_in_another_order(key: Any) -> None:
    """A weight of GPTQ with act-order: its blocks have the columns by groups."""
    rng = np.random.default_rng(2)
    codes, zeros = rng.integers(0, 16, (128, 96)), rng.integers(1, 16, (4, 96))
    scales = (rng.random((4, 96)) * 0.1).astype(np.float16)
    g_idx = rng.permutation(np.arange(128) // 32).astype(np.int32)

    def packed(numbers: Any) -> Any:
        flags = (numbers[..., None] >> np.arange(4)) & 1
        flags = flags.reshape(*numbers.shape[:-1], -1).astype(np.uint8)
        return np.packbits(flags, axis=-1, bitorder="little").view("<i4")

    parts = {
        "m.qweight": ArrayPart(packed(codes.T).T.copy(), "I32"),
        "m.qzeros": ArrayPart(packed(zeros - 1), "I32"),
        "m.scales": ArrayPart(scales, "F16"),
        "m.g_idx": ArrayPart(g_idx, "I32"),
    }
    weight = quantized_weights(parts, {"quant_method": "gptq", "bits": 4}, {})["m.weight"]
    tensor = from_packing(weight, torch.float32, key=key, name="m.weight")
    values = torch.from_numpy((scales[g_idx].astype(np.float64) * (codes - zeros[g_idx])).T).float()
    x, y = torch.randn(3, 128), torch.randn(2, 96)
    with torch.inference_mode():
        assert torch.equal(tensor.decrypt(), values)
        assert torch.equal(tensor[torch.tensor([4, 1])], values[[4, 1]])
        linear = torch.nn.functional.linear(x, tensor)
        assert torch.allclose(linear, x @ values.t(), atol=0.3)
        assert torch.allclose(y @ tensor, y @ values, atol=0.3)
        assert not torch.allclose(linear, x.flip(1) @ values.t(), atol=0.3)
    saved = io.BytesIO()
    torch.save(tensor, saved)
    saved.seek(0)
    with ours.using_key(key):
        again = torch.load(saved, weights_only=True)
    assert torch.equal(again.decrypt(), values)


# ---- life in torch -------------------------------------------------------------------------------


def test_tied_weights_are_one(key: Any) -> None:
    model = net(key, "q8_0")
    assert model.head.weight is model.words.weight
    found = ours.stored_types(model)
    assert found["q8_0"].tensors == 3 and found["float32"].tensors == 4
    assert found["q8_0"].bytes == (70 * 256 + 2 * 512 * 256) * 34 // 32
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.words.weight
    assert torch.equal(run(twin), run(model))


def test_to_another_type_opens_nothing(key: Any) -> None:
    model = net(key, "q4_k")
    before = model.up.weight.core
    model.to(torch.bfloat16)
    assert model.up.weight.dtype == torch.bfloat16 and model.up.weight.format == "q4_k"
    assert model.up.weight.core is before
    assert run(model).dtype == torch.bfloat16
    with pytest.raises(errors.ArgumentError, match="main memory"):
        model.to("cuda")


@pytest.mark.parametrize("format", ["q4_k", "q8_0", "int8_row"])
def test_bfloat16_is_multiplied_as_it_is(
    format: str, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits are those of float32, rounded once; and nobody converts x before."""
    given, model = [], net(key, format, torch.bfloat16).up
    native = _linear.native.block_rows
    monkeypatch.setattr(
        _linear.native, "block_rows", lambda *args: (given.append(args[-1]), native(*args))
    )
    x = torch.randn(3, 256, dtype=torch.bfloat16)
    with torch.inference_mode():
        for rows in (x, x[:1], x.repeat(7, 1)):
            got = model(rows)
            assert given.pop() == (lib.CCMEM_BF16,) * 3
            wide = torch.nn.functional.linear(
                rows.float(), model.weight.to(torch.float32), model.bias[:].float()
            )
            assert set(given.pop()) == {lib.CCMEM_F32}
            assert torch.equal(got, wide.bfloat16())


def test_state_dicts(key: Any) -> None:
    model, other = net(key, "q8_0"), net(key, "q8_0")
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    with ours.using_key(key):
        state = torch.load(saved, weights_only=True)
    assert state["up.weight"].format == "q8_0"
    assert bytes(model.up.weight.core.raw[0]) not in saved.getvalue()
    with torch.no_grad():
        other.load_state_dict(state)  # blocks of one format are taken over
        assert torch.equal(run(other), run(model))
        plain = Net()
        plain.load_state_dict(state, assign=True)
        assert torch.equal(run(plain), run(model))
        with pytest.raises(RuntimeError, match="quantised tensor cannot be written"):
            other.load_state_dict(Net().state_dict())
        with pytest.raises(RuntimeError, match="quantised tensor cannot be written"):
            other.load_state_dict(net(key, "q4_k").state_dict())


def test_what_would_write_is_refused(key: Any) -> None:
    weight = net(key).up.weight
    with torch.no_grad():
        for change in (
            lambda: weight.mul_(2),
            lambda: weight.zero_(),
            lambda: weight.__setitem__(0, 1.0),
            lambda: weight.copy_(torch.zeros(512, 256)),
        ):
            with pytest.raises(errors.ReadOnlyError, match="quantised"):
                change()
    with pytest.raises(errors.ArgumentTypeError, match="quantised"):
        weight.to(torch.int32)


def test_training_is_refused(key: Any) -> None:
    model = net(key)
    x = torch.randn(2, 256, requires_grad=True)
    model.up(x).sum().backward()  # inputs get theirs
    assert x.grad is not None
    model.up.weight.requires_grad_(True)
    with pytest.raises(errors.ArgumentError, match="for inference"):
        model.up(torch.randn(2, 256)).sum().backward()


def test_autocast(key: Any) -> None:
    model = net(key, "q8_0")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        got = model.up(torch.randn(2, 256))
    assert got.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"), torch.inference_mode():
        model.up(torch.randn(2, 256, dtype=torch.bfloat16))


def test_compiled(key: Any) -> None:
    """Formats that have one shape are told apart, and nothing of the weights is in the program."""
    for format in ("q8_0", "q4_k"):
        model = net(key, format)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert torch.allclose(compiled(IDS), model(IDS), atol=1e-4)


def test_results_are_wiped(key: Any) -> None:
    """Products lie in the pool if that is asked for, and are the same."""
    model = net(key, "q8_0", activations="wiped")
    assert model.up.weight.activations == "wiped"
    before = wiped.stats()["plain_in_use"]
    x = torch.randn(2, 256)
    with torch.inference_mode():
        got = model.up(x)
        assert wiped.stats()["plain_in_use"] > before
        assert torch.equal(got, net(key, "q8_0").up(x))
        del got
        assert wiped.stats()["plain_in_use"] == before
    assert torch.equal(run(model), run(net(key, "q8_0")))


def test_encrypted_models_are_quantised(key: Any) -> None:
    model = ours.encrypt_module(Net().eval(), key=key)
    ours.encrypt_module(model, key=key, quantize="q8_0", skip="up")
    assert model.up.weight.format is None and model.down.weight.format == "q8_0"
    assert torch.equal(model.down.weight.decrypt(), net(key, "q8_0").down.weight.decrypt())
    assert model.head.weight is model.words.weight


def test_formats_by_name(key: Any) -> None:
    model = net(key, {"up": "q8_0", "words.*": None, "head": None, "*": "q4_k"})
    assert model.up.weight.format == "q8_0" and model.down.weight.format == "q4_k"
    assert model.words.weight.format is None
    for wrong, kind in (
        ("q9", errors.ArgumentError),
        (7, errors.ArgumentTypeError),
        ({"*": "q9"}, errors.ArgumentError),
        ({3: "q4_k"}, errors.ArgumentTypeError),
    ):
        plain = Net()
        with pytest.raises(kind):
            ours.encrypt_module(plain, key=key, quantize=wrong)  # type: ignore[arg-type]
        assert not isinstance(plain.up.weight, ours.EncryptedTensor)


def test_rows_that_are_no_blocks(key: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 8), torch.nn.Linear(50, 8))
    with pytest.warns(errors.FormatWarning, match=r"0\.weight q8_0, 1\.weight int8_row"):
        ours.encrypt_module(model, key=key, quantize="q4_k")
    assert [layer.weight.format for layer in model] == ["q8_0", "int8_row"]


@pytest.mark.parametrize("format", ["q4_k", "q8_0", "int8_row"])
def test_numbers_that_are_none_are_refused(format: str, key: Any) -> None:
    model = Net()
    with torch.no_grad():
        model.up.weight[7, 9] = float("nan")
    with pytest.raises(errors.ArgumentError, match="not a number"):
        ours.encrypt_module(model, key=key, quantize=format)
    assert torch.isnan(model.up.weight[7, 9])  # whole, and plain
    with torch.no_grad():
        model.up.weight[7, 9] = 0
    ours.encrypt_module(model, key=key, quantize=format)
    assert model.up.weight.format == format


def test_other_layouts_of_memory(key: Any) -> None:
    plain = torch.nn.Linear(256, 64, bias=False)
    turned = torch.nn.Linear(256, 64, bias=False)
    turned.weight = torch.nn.Parameter(plain.weight.detach().t().contiguous().t())
    assert not turned.weight.is_contiguous()
    for layer in (plain, turned):
        ours.encrypt_module(layer, key=key, quantize="q8_0")
    assert torch.equal(plain.weight.decrypt(), turned.weight.decrypt())


def test_zeros_and_tiny_numbers(key: Any) -> None:
    for format in FORMATS:
        layer = torch.nn.Linear(256, 4, bias=False)
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[1] = 1e-30
        ours.encrypt_module(layer, key=key, quantize=format)
        with torch.inference_mode():
            got = layer(torch.ones(1, 256))
        assert torch.isfinite(got).all() and got.abs().max() < 1e-20


# ---- what torchao has quantised ------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_models_of_torchao(bits: int, key: Any) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.Linear(64, 96))
    quantize_(
        model,
        Int8WeightOnlyConfig()
        if bits == 8
        else IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
    )
    values = model[0].weight.dequantize().detach()
    x = torch.randn(3, 128)
    with torch.inference_mode():
        wanted = model(x)
    data = model[0].weight.qdata
    ours.encrypt_module(model, key=key)
    assert model[0].weight.format == ("int8_row" if bits == 8 else "int4_g32")
    assert torch.equal(model[0].weight.decrypt(), values)
    assert not data.any()  # overwritten
    with torch.inference_mode():
        assert torch.allclose(model(x), wanted, atol=0.02)


# ---- memory, threads, processes ------------------------------------------------------------------

SCAN = """
import sys
import torch, pyccmem, pyccmem.torch as ours

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(500, 256), torch.nn.Linear(256, 700)).eval()
key = pyccmem.Key.generate()
if sys.argv[1] == "encrypted":
    ours.encrypt_module(model, key=key, quantize="q4_k")
else:
    from pyccmem.quantized import quantize_blocks
    kept = [quantize_blocks(layer.weight.detach().numpy(), "q4_k").copy() for layer in model]
with torch.inference_mode():
    model(torch.arange(9)[None])
print("ready", flush=True)
sys.stdin.readline()
"""


def _found(mode: str) -> int:
    """How many pieces of 16 bytes of the rows' numbers, and of their blocks, lie in a process's
    memory."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(500, 256), torch.nn.Linear(256, 700))
    tables = [layer.weight.detach().numpy().copy() for layer in model]
    rows = [row[at : at + 4].tobytes() for t in tables for row in t[20:220] for at in (0, 96)]
    with pyccmem.Key.generate() as key:
        ours.encrypt_module(model, key=key, quantize="q4_k")
        for layer in model:
            blocks = layer.weight.core.raw[...]
            rows += [bytes(line[at : at + 16]) for line in blocks[20:220] for at in (16, 80)]
    needles = {str(number): row for number, row in enumerate(rows)}
    with child(SCAN, mode) as pid:
        return len({name for name, _ in find(pid, needles)})


def test_neither_numbers_nor_blocks_are_in_memory() -> None:
    assert _found("encrypted") == 0
    assert _found("plain") >= 800  # the twin is found out


def test_two_threads(key: Any) -> None:
    model = net(key, "q4_k")
    wanted, found = run(model), []

    def work() -> None:
        found.extend(torch.equal(run(model), wanted) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40


def test_a_child_uses_no_key(key: Any) -> None:
    model = net(key, "q8_0")
    run(model)
    child = os.fork()
    if not child:
        try:
            run(model)
            os._exit(1)
        except errors.ForkError:
            os._exit(0)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_a_changed_page_is_named(key: Any) -> None:
    model = net(key)
    run(model)
    damage(model.up.weight.core.raw.buffer, 0)
    with pytest.raises(errors.IntegrityError, match=r"up\.weight"):
        run(model)
    assert run(model.words).shape == (2, 4, 256)  # other weights stay readable
    rows = net(key, "int8_row")
    damage(rows.down.weight.core.scale.buffer, 0)
    with pytest.raises(errors.IntegrityError, match=r"down\.weight\.scale"):
        run(rows)


def test_the_portable_tier_agrees(key: Any) -> None:
    code = (
        "import torch, pyccmem, pyccmem.torch as o, warnings; torch.manual_seed(0);"
        "warnings.simplefilter('ignore');"
        "m = torch.nn.Linear(256, 64); o.encrypt_module(m, key=pyccmem.Key.generate(), "
        "quantize='q4_k'); x = torch.linspace(-1, 1, 768).view(3, 256);\n"
        "with torch.inference_mode(): print(m(x).sum(1).tolist())"
    )
    outputs = []
    for tier in ("portable", None):
        env = {name: value for name, value in os.environ.items() if name != "PYCCMEM_TIER"}
        env |= {"PYCCMEM_TIER": tier} if tier else {}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(np.array(eval(done.stdout)))
    assert np.array_equal(*outputs)
