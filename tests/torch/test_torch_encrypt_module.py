# SPDX-License-Identifier: Apache-2.0
"""encrypt_module() tensor by tensor: what it needs, what it overwrites, what a failure leaves."""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import mmap
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch import nn  # noqa: E402

import pyccmem.torch as encrypted  # noqa: E402
from pyccmem.torch import EncryptedTensor, _module, _plain_memory  # noqa: E402

# ---- memory --------------------------------------------------------------------------------------

#: Encrypts models of 112 MiB whose largest tensor has 32 MiB, in whatever memory the cases say, and
#: prints how far the peak and the end lie above the plain model, in MiB.
CHILD = """
import json, re, sys
import torch, pyccmem, pyccmem.torch
from torch import nn
from pyccmem.torch import _module, _plain_memory

path, *cases = sys.argv[1:]
SIZES = [4] * 10 + [32] + [4] * 10
give_back, encrypt, overwrite = (
    _plain_memory._give_back, _module._Group.encrypt, _module.Mappings.overwrite
)

def memory(field):
    with open("/proc/self/status") as lines:
        return int(re.search(rf"{field}:\\s+(\\d+)", lines.read())[1]) / 1024

def weight(case, mib):
    values = torch.full((mib * 256, 1024), 0.5)
    return values.t() if case == "turned" else values

def measured(case):
    model = nn.Module()
    kept = []
    if case == "file":
        torch.save({f"w{at}": weight(case, mib) for at, mib in enumerate(SIZES)}, path)
        state = torch.load(path, mmap=True, weights_only=True)
        for name, tensor in state.items():
            tensor.sum()
            model.register_buffer(name, tensor)
        del state, tensor
    elif case == "heap":  # pieces that no allocator maps one by one
        for at in range(1000):
            model.register_buffer(f"w{at}", torch.full((115, 256), 0.5))
    else:
        for at, mib in enumerate(SIZES):
            model.register_parameter(f"w{at}", nn.Parameter(weight(case, mib), requires_grad=False))
    if case in ("optimizer", "stays"):
        kept = list(model.parameters())
    if case == "stays":
        _plain_memory._give_back = lambda start, stop: None
    if case == "at once":
        def keeping(self, *arguments):
            kept.append(self.tensor)
            encrypt(self, *arguments)
        _module._Group.encrypt = keeping
        _module.Mappings.overwrite = lambda self, tensor: None
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")
    before = memory("VmRSS")
    pyccmem.torch.encrypt_module(model, key=key)
    found = memory("VmHWM") - before, memory("VmRSS") - before
    for tensor in model.state_dict().values():
        assert float(tensor[0, 0]) == float(tensor[-1, -1]) == 0.5
    _plain_memory._give_back, _module._Group.encrypt, _module.Mappings.overwrite = (
        give_back, encrypt, overwrite
    )
    return found

key = pyccmem.Key.generate()
pyccmem.torch.encrypt_module(nn.Linear(4, 4), key=key)
print(json.dumps({case: measured(case) for case in cases}))
"""


def measured(tmp_path: Any, *cases: str) -> dict[str, tuple[float, float]]:
    child = [sys.executable, "-c", CHILD, str(tmp_path / "model"), *cases]
    done = subprocess.run(child, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {case: tuple(found) for case, found in json.loads(done.stdout).items()}


@support.not_sanitized
def test_peak(tmp_path: Any) -> None:
    """At most the plain model, its largest tensor and 32 MiB; afterwards little more than before,
    whoever refers to the plain tensors. The control: where these stay, both are above."""
    found = measured(
        tmp_path, "ordinary", "optimizer", "turned", "file", "heap", "at once", "stays"
    )
    for case in ("at once", "stays"):
        peak, after = found.pop(case)
        assert peak >= 100 and after >= 100
    for case, (peak, after) in found.items():
        assert peak <= 32 + 32, case
        assert after <= 32, case


# ---- failures ------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Seven tensors in nine places, two of which overlap."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Embedding(9, 8)
        self.rnn = nn.RNN(8, 8, bias=False)
        self.head = nn.Linear(8, 9)
        self.head.weight = self.table.weight
        self.register_buffer("place", torch.arange(11))
        self.register_buffer("again", self.place)
        both = torch.rand(6, 4)
        self.register_buffer("upper", both[:4])
        self.register_buffer("lower", both[2:])


def plain_of(model: nn.Module) -> dict[str, Any]:
    return {
        name: t.decrypt() if isinstance(t, EncryptedTensor) else t
        for name, t in model.state_dict().items()
    }


WANTED = {name: tensor.clone() for name, tensor in Tied().state_dict().items()}


def assert_whole(model: Tied) -> list[str]:
    """Every tensor has its values, ties hold; the names of the encrypted ones."""
    found = plain_of(model)
    assert list(found) == list(WANTED)
    assert all(torch.equal(found[name], values) for name, values in WANTED.items())
    assert model.head.weight is model.table.weight and model.place is model.again
    assert [id(w) for w in model.rnn._flat_weights] == [id(w) for w in model.rnn.parameters()]
    state = model.state_dict()
    return [name for name in state if isinstance(state[name], EncryptedTensor)]


def storages(model: Tied) -> dict[str, Any]:
    """The plain tensors, to look at after they were replaced."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def assert_wiped(model: Tied, before: dict[str, Any]) -> None:
    """No plain tensor that the model has lost has its values still."""
    state = model.state_dict()
    for name, tensor in before.items():
        if isinstance(state[name], EncryptedTensor):
            assert not tensor.any(), name


@pytest.mark.parametrize(
    "failure",
    [errors.OutOfMemoryError, errors.LockedMemoryError, KeyboardInterrupt, SystemExit],
)
def test_a_tensor_cannot_be_made(
    key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    make = EncryptedTensor.from_tensor
    for fails in range(7):
        model = Tied()
        before = storages(model)
        calls: list[str] = []

        def from_tensor(*args: Any, calls: Any = calls, fails: int = fails, **options: Any) -> Any:
            calls.append(options["name"])
            if len(calls) > fails:
                raise failure("as a test wants it")
            return make(*args, **options)

        monkeypatch.setattr(EncryptedTensor, "from_tensor", from_tensor)
        with pytest.raises(failure, match="as a test wants it"):
            encrypted.encrypt_module(model, key=key)
        monkeypatch.undo()
        done = assert_whole(model)
        assert calls[-1] not in done
        # Of the two that overlap, neither was replaced without the other.
        assert set(calls[:-1]) - set(done) == ({"upper"} if calls[-1] == "lower" else set())
        assert set(done) - set(calls) <= {"again", "head.weight"}
        assert_wiped(model, before)
        encrypted.encrypt_module(model, key=key)
        assert len(assert_whole(model)) == 9
        assert_wiped(model, before)
        assert sum(t.any().item() for t in before.values()) == 0


@contextmanager
def interrupted(at: int, files: tuple[str, ...]) -> Iterator[list[int]]:
    """Raises KeyboardInterrupt before the line with this number of those that run in `files`, and
    counts them."""
    count = [0]

    def local(frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            count[0] += 1
            if count[0] == at:
                raise KeyboardInterrupt
        return local

    def trace(frame: Any, event: str, arg: Any) -> Any:
        return local if frame.f_code.co_filename in files else None

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(previous)


FILES = (_module.__file__, _plain_memory.__file__)


def test_an_interrupt_before_any_line(key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    mappings = _plain_memory.Mappings()  # thousands of lines before anything has happened
    monkeypatch.setattr(_module, "Mappings", lambda: mappings)
    at, struck, last = 0, 0, False
    while not last:
        at += 1
        model = Tied()
        before = storages(model)
        with interrupted(at, FILES) as count:
            try:
                encrypted.encrypt_module(model, key=key)
                last = True
            except KeyboardInterrupt:
                struck += 1
        assert (count[0] < at) == last
        done = assert_whole(model)
        assert_wiped(model, before)
        assert not last or len(done) == 9
    assert struck > 300


def test_a_step_that_is_not_repeated_is_noticed(
    key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test before: without the repetition some plain tensor stays."""
    monkeypatch.setattr(_module, "_to_the_end", lambda step: step())
    with pytest.raises(AssertionError):
        test_an_interrupt_before_any_line(key, monkeypatch)


def test_progress_that_raises(key: pyccmem.Key) -> None:
    model = Tied()
    before = storages(model)

    def report(done: int, total: int) -> None:
        if done > total // 2:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        encrypted.encrypt_module(model, key=key, progress=report)
    assert 0 < len(assert_whole(model)) < 9
    assert_wiped(model, before)
    with pytest.raises(errors.ArgumentTypeError, match="progress"):
        encrypted.encrypt_module(model, key=key, progress=3)


def test_what_can_be_foreseen_changes_nothing(key: pyccmem.Key) -> None:
    wrong: dict[str, Any] = {
        "meta": torch.ones(3, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "without a shape": nn.UninitializedBuffer(),
    }
    for tensor in wrong.values():
        model = Tied()
        model.register_buffer("last", tensor)
        with pytest.raises(errors.ArgumentTypeError, match="last"):
            encrypted.encrypt_module(model, key=key)
        del model.last
        assert assert_whole(model) == []
    closed = pyccmem.Key.generate()
    closed.close()
    with pytest.raises(errors.ClosedError):
        encrypted.encrypt_module(model, key=closed)
    assert assert_whole(model) == []


# ---- what lies in the same memory ----------------------------------------------------------------


def parts(*views: Callable[[Any], Any]) -> tuple[nn.Module, Any, list[Any]]:
    """A model whose tensors are views of one piece of memory."""
    whole = torch.arange(1.0, 65).view(8, 8)
    model = nn.Module()
    for at, view in enumerate(views):
        model.register_buffer(f"b{at}", view(whole))
    return model, whole, [view(whole).clone() for view in views]


@pytest.mark.parametrize(
    "views",
    [
        (lambda w: w, lambda w: w.t()),
        (lambda w: w[:5], lambda w: w[4:], lambda w: w[3]),
        (lambda w: w[:, :3], lambda w: w[:, 3:]),
        (lambda w: w.view(-1), lambda w: w, lambda w: w.view(torch.int32)),
        (lambda w: w[2, 3], lambda w: w),
        (lambda w: w[:4], lambda w: w[4:]),
        (lambda w: w[::2, ::3], lambda w: w[0, :0]),
    ],
)
def test_tensors_that_overlap(key: pyccmem.Key, views: Any) -> None:
    model, whole, wanted = parts(*views)
    encrypted.encrypt_module(model, key=key)
    for at, values in enumerate(wanted):
        found = getattr(model, f"b{at}")
        assert type(found) is EncryptedTensor and torch.equal(found.decrypt(), values)
        assert not views[at](whole).any()
    model, whole, wanted = parts(*views)
    encrypted.encrypt_module(model, key=key, exclude="b0")
    assert torch.equal(model.b0, wanted[0])
    assert all(torch.equal(getattr(model, f"b{n}").decrypt(), w) for n, w in enumerate(wanted) if n)


def test_overlaps_are_noticed() -> None:
    """A number for each run of ranges that touch, whatever their order; the control: neighbours
    that only meet are apart."""
    extents = [(5, 9), (0, 3), (2, 4), None, (20, 30), (21, 22), (29, 31), (9, 10), (31, 32)]
    numbers = _plain_memory.apart(e and _plain_memory.Extent(*e) for e in extents)
    assert numbers[1] == numbers[2] and numbers[4] == numbers[5] == numbers[6]
    assert len({numbers[n] for n in (0, 1, 3, 4, 7, 8)}) == 6


# ---- memory of files and of others ---------------------------------------------------------------


def layer_of(values: Any) -> Any:
    layer = nn.Module()
    layer.register_buffer("w", values)
    return layer


@pytest.mark.parametrize("place", [None, "/dev/shm"])
def test_the_file_behind_mapped_memory_stays(key: pyccmem.Key, place: Any) -> None:
    if place is not None and not os.path.isdir(place):
        pytest.skip(f"there is no {place}")
    with tempfile.TemporaryDirectory(dir=place) as directory:
        check_file_stays(key, Path(directory, "w"))


def check_file_stays(key: pyccmem.Key, path: Path) -> None:
    wanted = np.arange(1, 5001, dtype=np.float32)
    wanted.tofile(path)
    for shared in (True, False):
        mapped = torch.from_file(str(path), shared=shared, size=5000)
        layer = layer_of(mapped.view(50, 100))
        encrypted.encrypt_module(layer, key=key)
        assert torch.equal(layer.w.decrypt().view(-1), torch.from_numpy(wanted))
        assert np.array_equal(np.fromfile(path, np.float32), wanted)
    writable = np.memmap(path, np.float32, "r+")
    layer = layer_of(torch.from_numpy(writable)[::2])  # with gaps
    encrypted.encrypt_module(layer, key=key)
    writable.flush()
    assert np.array_equal(np.fromfile(path, np.float32), wanted)


def test_changes_to_a_private_mapping_are_overwritten(key: pyccmem.Key, tmp_path: Any) -> None:
    path = tmp_path / "w"
    np.ones(5000, np.float32).tofile(path)
    mapped = torch.from_file(str(path), shared=False, size=5000)
    mapped[10:1500] = 7
    mapped[4995:] = 8
    seen: list[Any] = []
    zero = _plain_memory._zero

    def watched(start: int, stop: int) -> bool:
        done = zero(start, stop)
        place = mapped.data_ptr()
        values = float(mapped[12]), float(mapped[4999])
        seen.append(((start - place) // 4, (stop - place) // 4, *values))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plain_memory, "_zero", watched)
        layer = layer_of(mapped)
        encrypted.encrypt_module(layer, key=key)
    assert seen == [(0, 2048, 0.0, 8.0), (4096, 5000, 0.0, 0.0)]
    assert layer.w.decrypt()[[12, 4999, 2000]].tolist() == [7, 8, 1]
    assert mapped[2000] == 1, "the file's"


def test_shared_memory_is_overwritten(key: pyccmem.Key) -> None:
    shared = torch.full((3000,), 2.0).share_memory_()
    layer = layer_of(shared)
    encrypted.encrypt_module(layer, key=key)
    assert not shared.any() and bool((layer.w.decrypt() == 2).all())


def test_memory_of_two_processes_that_has_a_name_is_overwritten(key: pyccmem.Key) -> None:
    memory = shared_memory.SharedMemory(create=True, size=12000)
    try:
        shared = torch.frombuffer(memory.buf, dtype=torch.float32)[:3000].fill_(2)
        layer = layer_of(shared)
        encrypted.encrypt_module(layer, key=key)
        assert not shared.any() and bool((layer.w.decrypt() == 2).all())
        del shared
    finally:
        memory.unlink()
        gc.collect()
        memory.close()


def test_memory_that_is_read_in_two_ways_is_two_tensors(key: pyccmem.Key) -> None:
    """torch keeps the conjugate and the negative of a complex tensor as a flag of a view."""
    for make in (torch.Tensor.conj, lambda z: z.conj().imag):
        z = torch.tensor([1 + 2j, 3 - 4j])
        same, flagged = (z, make(z)) if make is torch.Tensor.conj else (z.imag, make(z))
        wanted = flagged.clone()
        assert same.data_ptr() == flagged.data_ptr() and not torch.equal(same, flagged)
        model = nn.Module()
        model.register_buffer("a", same)
        model.register_buffer("b", flagged)
        model.register_buffer("c", flagged)
        before = same.clone()
        encrypted.encrypt_module(model, key=key)
        assert torch.equal(model.a.decrypt(), before) and torch.equal(model.b.decrypt(), wanted)
        assert model.c is model.b and not z.imag.any()


def populating_works() -> bool:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        done = not _plain_memory._libc.madvise(place, mmap.PAGESIZE, 23)
        gc.collect()
        return done


def test_without_a_descriptor_plain_memory_is_overwritten_all_the_same(
    key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def refused(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    if not populating_works():
        pytest.skip("needs Linux 5.14")
    monkeypatch.setattr(_plain_memory.Descriptor, "open", refused)
    np.save(tmp_path / "w.npy", np.ones(5000, np.float32))
    read_only = np.load(tmp_path / "w.npy", mmap_mode="r")
    around = torch.ones(10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: it is read-only
        mapped = torch.from_numpy(read_only)
    for plain, kept in ((around[1001:7003], False), (mapped, True)):
        layer = layer_of(plain)
        monkeypatch.setattr(_plain_memory.Mappings, "_parts", one_writable_part)
        encrypted.encrypt_module(layer, key=key)
        assert bool(plain.any()) == kept and bool((layer.w.decrypt() == 1).all())
    assert around[:1001].all() and around[7003:].all()


def one_writable_part(self: Any, place: Any) -> Any:
    """What is known of memory without /proc."""
    yield place.start, place.stop, _plain_memory._Mapping(place.stop, True, False, "")


def test_memory_of_others(key: pyccmem.Key) -> None:
    """An array's pages are overwritten, and stay the array's."""
    array = np.full(1 << 18, 3.0, np.float32)
    given: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plain_memory, "_give_back", lambda start, stop: given.append(stop - start))
        encrypted.encrypt_module(layer_of(torch.from_numpy(array)), key=key)
        assert not array.any() and given == []
        encrypted.encrypt_module(layer_of(torch.full((1 << 18,), 3.0)), key=key)
        assert given == [1 << 20]


def test_pages_given_back_read_as_zeros_and_can_be_written(key: pyccmem.Key) -> None:
    tensor = torch.full((100_001,), 2.0)
    guard = torch.full((1000,), 4.0)
    encrypted.encrypt_module(layer_of(tensor[1:-1]), key=key)
    assert tensor[0] == 2 and tensor[-1] == 2 and not tensor[1:-1].any()
    tensor.fill_(3)
    assert bool((tensor == 3).all()) and bool((guard == 4).all())


def test_conjugated_and_strided_sources(key: pyccmem.Key) -> None:
    """More than the 1 MiB that is put in order at a time."""
    values = torch.randn(3, 70, 900, dtype=torch.complex64)
    for source in (values, values.conj(), values.transpose(0, 2), values.conj().imag, values[:, 3]):
        found = EncryptedTensor.from_tensor(source, key=key)
        assert torch.equal(found.decrypt(), source.resolve_conj().resolve_neg().contiguous())


def test_threads_are_torchs_again(key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyccmem.torch import _threads

    chosen: list[bool] = []
    choose = _threads._choose
    monkeypatch.setattr(_threads, "_choose", lambda: (chosen.append(not _threads._own), choose()))
    with pytest.raises(ZeroDivisionError), _threads.own_threads(), _threads.own_threads():
        1 / 0  # noqa: B018
    assert chosen == [False, False, False, True]


def test_no_plain_tensor_is_kept_alive(key: pyccmem.Key) -> None:
    import weakref

    model = Tied()
    gone = [weakref.ref(p) for p in model.parameters()]
    gc.disable()
    try:
        encrypted.encrypt_module(model, key=key, wipe=False)
        assert all(reference() is None for reference in gone)
    finally:
        gc.enable()
