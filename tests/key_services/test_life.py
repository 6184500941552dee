# SPDX-License-Identifier: Apache-2.0
"""The life of a key from a service: a start that fails closed, a model that goes on until the
key's limit and then refuses, and what the audit hook is told."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

from pyccmem import Key, errors, gguf, keys
from pyccmem import safetensors as sealed
from pyccmem.key_services import Event, Held, WrappedKey, envelope, leases, on_event

TENSORS = {"t": np.arange(6000.0), "u": np.ones(5, np.float32)}
KEK = bytes(range(50, 82))


class Service:
    """A service that can be away, refuse, hang, or give another key."""

    name = "service"

    def __init__(self) -> None:
        self.kek = KEK
        self.failure: Exception | None = None
        self.calls = 0
        self.block: threading.Event | None = None

    def _call(self) -> None:
        self.calls += 1
        if self.block is not None:
            self.block.wait(20)
        if self.failure is not None:
            # A new one each time: an exception that is kept, keeps all frames that it went through.
            raise type(self.failure)(str(self.failure))

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        self._call()
        return WrappedKey("kek-1", envelope.seal(self.kek, key, context))

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Key:
        self._call()
        return envelope.open(self.kek, wrapped.blob, context)


AWAY = errors.KeyUnavailableError("The service is away; start it.")


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def path(tmp_path: Path, service: Service) -> Path:
    sealed.save_file(TENSORS, tmp_path / "file", key=service, context={"model": "m"})
    service.calls = 0
    return tmp_path / "file"


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    events: list[Event] = []
    end = on_event(events.append)
    yield events
    end()


def until(what: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def reads(tensor: Any) -> bool:
    try:
        return bool((tensor[...] == TENSORS["t"]).all())
    except errors.KeyUnavailableError:
        return False


# ---- a start ----


def test_a_start_waits_for_the_service_and_then_fails(path: Path, service: Service) -> None:
    service.failure = AWAY
    begin = time.monotonic()
    with pytest.raises(
        errors.KeyUnavailableError, match=r"within 0.3 seconds: The service is away"
    ):
        sealed.load_file(path, key=Held(service, deadline=0.3))
    assert 0.25 < time.monotonic() - begin < 5 and service.calls >= 2
    for failure in (ConnectionRefusedError("refused"), TimeoutError()):
        service.failure = failure
        with pytest.raises(errors.KeyUnavailableError):
            sealed.load_file(path, key=Held(service, deadline=0))


def test_a_start_goes_on_when_the_service_comes(path: Path, service: Service) -> None:
    service.failure = AWAY
    timer = threading.Timer(0.3, lambda: setattr(service, "failure", None))
    timer.start()
    assert reads(sealed.load_file(path, key=Held(service))["t"])
    timer.join()
    assert service.calls >= 2


@pytest.mark.parametrize(
    "failure",
    [
        errors.KeyAccessError("Revoked."),
        errors.ContextError("Another context."),
        errors.KeyServiceError("Nonsense."),
        ZeroDivisionError(),
    ],
)
def test_a_refusal_is_not_repeated(path: Path, service: Service, failure: Exception) -> None:
    service.failure = failure
    with pytest.raises(type(failure)):
        sealed.load_file(path, key=Held(service))
    assert service.calls == 1


def test_sealing_waits_as_well(tmp_path: Path, service: Service) -> None:
    service.failure = AWAY
    with pytest.raises(errors.KeyUnavailableError):
        sealed.save_file(TENSORS, tmp_path / "new", key=Held(service, deadline=0.1))
    assert not (tmp_path / "new").exists()
    service.failure = None
    sealed.save_file(TENSORS, tmp_path / "new", key=Held(service))
    assert reads(sealed.load_file(tmp_path / "new", key=service)["t"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_age": 0}, errors.ArgumentError),
        ({"max_age": -1}, errors.ArgumentError),
        ({"max_age": float("nan")}, errors.ArgumentError),
        ({"max_age": "1h"}, errors.ArgumentTypeError),
        ({"max_age": True}, errors.ArgumentTypeError),
        ({"deadline": -1}, errors.ArgumentError),
        ({"deadline": None}, errors.ArgumentTypeError),
        ({"on_event": 7}, errors.ArgumentTypeError),
    ],
)
def test_limits_that_cannot_be(service: Service, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Held(service, **options)


def test_what_cannot_be_held(service: Service, key: Key) -> None:
    class Before:
        name = "before"

        def wrap_key(self, key: memoryview) -> WrappedKey:
            raise AssertionError

        def unwrap_key(self, wrapped: WrappedKey) -> bytearray:
            raise AssertionError

    for wrong in (key, None, "file:x", Before(), Held(service)):
        with pytest.raises(errors.ArgumentTypeError):
            Held(wrong)  # type: ignore[arg-type]


# ---- a running model ----


@pytest.mark.parametrize("mmap", [True, False], ids=["mapped", "read"])
def test_it_goes_on_until_its_limit_then_refuses_then_goes_on(
    path: Path, service: Service, heard: list[Event], mmap: bool
) -> None:
    weights = sealed.load_file(path, key=Held(service, max_age=0.6), mmap=mmap)
    tensor = weights["t"]
    begin = time.monotonic()
    service.failure = AWAY
    while time.monotonic() - begin < 0.4:
        assert reads(tensor), "the limit has not come"
        time.sleep(0.02)
    until(lambda: not reads(tensor))
    assert time.monotonic() - begin < 3
    for work in (
        lambda: tensor[...],
        lambda: tensor[7],
        lambda: tensor.buffer.read(),
        lambda: tensor.buffer.verify(),
        lambda: tensor.tolist(),
        lambda: weights["u"][...],
    ):
        with pytest.raises(errors.KeyUnavailableError):
            work()
    before = tensor.buffer.stats()["integrity_failures"]
    assert before == 0, "nothing was changed"
    service.failure = None
    until(lambda: reads(tensor))
    assert (weights["u"][...] == TENSORS["u"]).all() and tensor.buffer.verify() == []
    kinds = [event.event for event in heard if event.event not in ("wrap", "unwrap")]
    assert kinds[:2] == ["withheld", "restored"]


def test_the_control_without_a_limit(path: Path, service: Service) -> None:
    tensor = sealed.load_file(path, key=Held(service))["t"]
    service.failure = AWAY
    time.sleep(0.8)
    assert reads(tensor) and service.calls == 1


def test_a_key_that_is_renewed_is_never_withheld(path: Path, service: Service) -> None:
    tensor = sealed.load_file(path, key=Held(service, max_age=0.3))["t"]
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        assert reads(tensor)
        time.sleep(0.01)
    assert service.calls > 3


@pytest.mark.parametrize("how", ["refused", "another key", "context"])
def test_a_refusal_withholds_at_once(path: Path, service: Service, how: str) -> None:
    tensor = sealed.load_file(path, key=Held(service, max_age=2))["t"]
    begin = time.monotonic()
    if how == "refused":
        service.failure = errors.KeyAccessError("Revoked.")
    elif how == "context":
        service.kek = bytes(32)
    else:
        service.unwrap_key = lambda wrapped, context: Key.generate()  # type: ignore[method-assign]
    until(lambda: not reads(tensor))
    assert time.monotonic() - begin < 1.7, "long before the limit"


def test_a_service_that_hangs_does_not_move_the_limit(path: Path, service: Service) -> None:
    tensor = sealed.load_file(path, key=Held(service, max_age=0.6))["t"]
    service.block = threading.Event()
    begin = time.monotonic()
    until(lambda: not reads(tensor))
    assert time.monotonic() - begin < 3
    service.block.set()
    service.block = None
    until(lambda: reads(tensor))


def test_an_open_file_refuses_as_well(path: Path, service: Service) -> None:
    with sealed.safe_open(path, key=Held(service, max_age=0.3)) as file:
        service.failure = AWAY
        until(lambda: file._lease.withheld)  # type: ignore[attr-defined]
        with pytest.raises(errors.KeyUnavailableError, match="'service' was not reached for"):
            file.get_tensor("t")
        assert file._data_key.closed  # type: ignore[attr-defined]
        service.failure = None
        until(lambda: not file._lease.withheld)  # type: ignore[attr-defined]
        assert reads(file.get_tensor("t"))


def test_products_refuse(path: Path, service: Service, tmp_path: Path) -> None:
    import pyccmem

    weight = np.arange(6400, dtype=np.float32).reshape(80, 80)
    sealed.save_file({"w": weight}, tmp_path / "w", key=service)
    tensor = sealed.load_file(tmp_path / "w", key=Held(service, max_age=0.3))["w"]
    x = np.ones((2, 80), np.float32)
    assert pyccmem.linear(x, tensor).any()
    service.failure = AWAY
    end = time.monotonic() + 10
    with pytest.raises(errors.KeyUnavailableError):
        while time.monotonic() < end:
            pyccmem.linear(x, tensor)


def test_readers_in_threads_see_whole_values_or_the_refusal(path: Path, service: Service) -> None:
    """While keys come and go, and other files' subkeys are derived beside them."""
    held = sealed.load_file(path, key=Held(service, max_age=0.1))["t"]
    free = sealed.load_file(path, key=service)["t"]
    wrong: list[str] = []
    seen = {"read": 0, "refused": 0}
    stop = threading.Event()

    def read(tensor: Any, may: bool) -> None:
        while not stop.is_set():
            try:
                good = bool((tensor[...] == TENSORS["t"]).all())
                seen["read"] += 1
                if not good:
                    wrong.append("another value")
            except errors.KeyUnavailableError:
                seen["refused"] += 1
                if not may:
                    wrong.append("refused for another's limit")
            except Exception as problem:
                wrong.append(repr(problem))

    threads = [threading.Thread(target=read, args=(held, True)) for _ in range(2)]
    threads.append(threading.Thread(target=read, args=(free, False)))
    for thread in threads:
        thread.start()
    for _ in range(4):
        service.failure = AWAY
        time.sleep(0.2)
        service.failure = None
        time.sleep(0.15)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and seen["read"] and seen["refused"]


def test_gguf_files(tmp_path: Path, service: Service) -> None:
    import gguf_files

    plain, there = tmp_path / "a.gguf", tmp_path / "b"
    plain.write_bytes(gguf_files.sound().bytes())
    gguf.seal(plain, there, service)
    with gguf.open_sealed(there, Held(service, max_age=0.3)) as file:
        name = next(iter(file.tensors))
        service.failure = AWAY

        def refused() -> bool:
            try:
                file.tensor(name).close()
            except errors.KeyUnavailableError:
                return True
            return False

        until(refused)


def test_what_is_gone_asks_no_more(path: Path, service: Service) -> None:
    tensors = sealed.load_file(path, key=Held(service, max_age=0.2))
    until(lambda: service.calls > 1)
    for tensor in tensors.values():
        tensor.close()
    del tensors, tensor
    gc.collect()
    time.sleep(0.1)
    before = service.calls
    time.sleep(0.5)
    assert service.calls == before
    leases._watcher._changed.acquire()
    leases._watcher._changed.notify()
    leases._watcher._changed.release()
    until(lambda: leases._watcher._thread is None)


def test_a_forked_child_has_a_limit_of_its_own(path: Path, service: Service) -> None:
    tensor = sealed.load_file(path, key=Held(service, max_age=0.5, deadline=0))["t"]
    assert reads(tensor)

    def child() -> None:
        assert reads(tensor)
        service.failure = AWAY
        until(lambda: not reads(tensor))
        service.failure = None
        until(lambda: reads(tensor))

    support.in_forked_child(child)
    assert reads(tensor)


def test_a_child_whose_service_is_away(path: Path, service: Service) -> None:
    tensor = sealed.load_file(path, key=Held(service, deadline=0))["t"]

    def child() -> None:
        service.failure = AWAY
        with pytest.raises(errors.ForkError, match="was not reached"):
            tensor[...]

    support.in_forked_child(child)


# ---- the hook ----


def test_the_hook_is_told_and_never_the_key(path: Path, service: Service) -> None:
    events: list[Event] = []
    own: list[Event] = []
    end = on_event(events.append)
    try:
        with sealed.safe_open(path, key=service) as file:
            data = bytearray(32)
            file._data_key._copy_into(data)  # type: ignore[attr-defined]
            context = file.context  # type: ignore[attr-defined]
        service.failure = AWAY
        with pytest.raises(errors.KeyUnavailableError):
            sealed.load_file(path, key=Held(service, deadline=0, on_event=own.append))
    finally:
        end()
    service.failure = None
    sealed.load_file(path, key=service)
    good, bad = events
    assert (good.event, good.provider, good.key_id) == ("unwrap", "service", "kek-1")
    assert good.context == context and context["model"] == "m" and good.error is None
    assert abs(good.when - time.time()) < 60 and 0 <= good.seconds < 10
    assert bad.error == "pyccmem.errors.KeyUnavailableError" and own == [bad]
    told = repr(events).encode()
    for at in range(0, 32, 8):
        part = bytes(data[at : at + 8])
        assert part not in told and part.hex().encode() not in told


def test_what_a_hook_raises_ends_the_call(path: Path, service: Service) -> None:
    def hook(event: Event) -> None:
        raise PermissionError("no room for the audit log")

    end = on_event(hook)
    try:
        with pytest.raises(PermissionError):
            sealed.load_file(path, key=service)
    finally:
        end()
    end()  # may be repeated
    assert sealed.load_file(path, key=service)
    with pytest.raises(errors.ArgumentTypeError):
        on_event(7)  # type: ignore[arg-type]


def test_wrapping_is_told(tmp_path: Path, service: Service, heard: list[Event]) -> None:
    sealed.save_file(TENSORS, tmp_path / "f", key=Held(service))
    (event,) = heard
    assert (event.event, event.key_id, event.error) == ("wrap", "kek-1", None)
    assert event.context["pyccmem.file_id"] == sealed.inspect_file(tmp_path / "f").file_id


# ---- where the machine has no room ----


def _no_thread(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Lets no thread of this name start."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == name:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.fixture
def own_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_watcher", leases._Watcher())


@pytest.mark.usefixtures("own_watcher")
def test_no_key_with_a_limit_that_nobody_watches(
    path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as scarce:
        _no_thread(scarce, "pyccmem key limits")
        for _ in range(2):  # the second is not told that the first has begun it
            with pytest.raises(errors.KeyServiceError, match="no further thread"):
                sealed.load_file(path, key=Held(service, max_age=0.2))
        assert reads(sealed.load_file(path, key=service)["t"])  # without a limit
    tensor = sealed.load_file(path, key=Held(service, max_age=0.2))["t"]
    assert reads(tensor)
    service.failure = AWAY
    until(lambda: not reads(tensor))


@pytest.mark.usefixtures("own_watcher")
def test_a_renewal_that_finds_no_thread_does_not_end_the_limit(
    path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = sealed.load_file(path, key=Held(service, max_age=0.4))["t"]
    with monkeypatch.context() as scarce:
        _no_thread(scarce, "pyccmem key renewal")
        until(lambda: not reads(tensor))
    until(lambda: reads(tensor))  # it is fetched again once there are threads


class Part:
    """A holder that fails, or not."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure, self.has = failure, True

    def withhold(self) -> None:
        self.has = False
        if self.failure is not None:
            raise self.failure

    def restore(self, key: Key) -> None:
        if self.failure is not None:
            raise self.failure
        self.has = True


def _lease(fetch: Callable[[], Key], key: Key, max_age: float, hook: Any = None) -> leases.Lease:
    return leases.Lease(
        key, fetch, max_age, object(),
        provider="p", key_id="k", context={}, hook=hook, fetched=leases.clock(),
    )  # fmt: skip


@pytest.mark.usefixtures("own_watcher")
@pytest.mark.parametrize("failure", [errors.OutOfMemoryError("No memory."), SystemExit(3)])
def test_no_part_keeps_a_key_that_another_could_not_get(failure: BaseException, key: Key) -> None:
    def away() -> Key:
        raise AWAY

    parts = [Part(), Part(failure), Part()]
    lease = _lease(away, key, 0.2)
    for part in parts:
        lease.add(part)
    until(lambda: lease.withheld)
    assert not any(part.has for part in parts)  # though one of them failed
    lease._fetch = lambda: keys.another(key)
    lease.renew()
    assert lease.withheld and not any(part.has for part in parts)
    parts[1].failure = errors.ClosedError("Closed.")  # which stops nobody
    lease.renew()
    assert not lease.withheld and parts[0].has and parts[2].has


@pytest.mark.usefixtures("own_watcher")
def test_a_provider_that_ends_its_thread_is_asked_no_more_often(key: Key) -> None:
    calls = []

    def ends() -> Key:
        calls.append(1)
        raise SystemExit(1)

    part = Part()
    lease = _lease(ends, key, 0.5, hook=lambda event: ends())
    lease.add(part)
    until(lambda: not part.has)
    assert 1 <= len(calls) < 50 and lease.withheld


def test_what_a_hook_keeps_from_the_caller_is_wiped(path: Path) -> None:
    given: list[bytearray] = []

    class Gives(Service):
        def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Any:
            with super().unwrap_key(wrapped, context) as made:
                data = bytearray(32)
                keys.copy_into(made, memoryview(data))
            given.append(data)
            return data

    def hook(event: Event) -> None:
        raise PermissionError("no room for the audit log")

    with pytest.raises(PermissionError):
        sealed.load_file(path, key=Held(Gives(), on_event=hook))
    assert given == [bytearray(32)]
    sealed.load_file(path, key=Held(Gives()))  # and without the hook it is a key


def test_a_hook_is_told_as_often_as_it_was_registered(path: Path, service: Service) -> None:
    told: list[Event] = []
    first, second = on_event(told.append), on_event(told.append)
    try:
        first()
        first()  # ends nothing but its own
        sealed.load_file(path, key=service)
        assert len(told) == 1
    finally:
        second()
