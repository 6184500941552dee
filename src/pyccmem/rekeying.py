# SPDX-License-Identifier: Apache-2.0
"""Rekeying: gives buffers, tensors and arenas another key, in a thread beside those that use
them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import errors
from .arena import Arena, moving, native_arena, shared_of
from .arena import rekey_steps as arena_steps
from .buffer import EncryptedBuffer, rekey_steps
from .core.rekey import KeyUse, Steps, checked_rate, run
from .core.resource import Resource
from .keys import Key, native_key
from .quantized import QuantizedTensor
from .tensor import EncryptedTensor

__all__ = ["KeyUse", "Rekeying"]


#: Seconds between two looks at what else has happened, while it waits.
_LOOK = 0.05


class _Cancelled(Exception):  # it is no error: it ends the thread
    """Raised in the thread when it is cancelled."""


def _again(kind: type[BaseException], arguments: Any, fields: dict[str, Any]) -> BaseException:
    """Returns an exception like one that was raised before."""
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(fields)
    return error


def _parts(targets: Any) -> Iterator[Any]:
    """Yields the buffers, arenas and tensors that the targets are made of. Raises
    ArgumentTypeError."""
    for target in targets:
        if isinstance(target, QuantizedTensor):
            yield from _parts(one for one in (target.raw, target.scale) if one is not None)
        elif isinstance(target, EncryptedTensor):
            yield target if shared_of(target) is not None else target.buffer
        elif isinstance(target, (EncryptedBuffer, Arena)):
            yield target
        else:
            raise errors.ArgumentTypeError(
                f"Rekeying takes buffers, tensors and arenas, not {type(target).__name__}; for a "
                f"model of torch there is pyccmem.torch.rekey_module()."
            )


def _jobs(targets: Any, key: Key | None) -> tuple[int, list[tuple[Steps, Any]]]:
    """Returns the bytes of all that the targets lie in, and the steps, each part once, with the
    buffer that they are about, or None. Raises what EncryptedBuffer.rekey() raises before it
    begins."""
    root = None if key is None else native_key(key)
    total, seen = 0, set[int]()
    jobs: list[tuple[Steps, Any]] = []
    frozen: dict[int, list[EncryptedTensor]] = {}
    for part in _parts(targets):
        shared = shared_of(part) if isinstance(part, EncryptedTensor) else None
        owner: Any = part if shared is None else shared
        if shared is not None and shared.frozen:
            if id(part) not in seen:
                total += part.nbytes
                frozen.setdefault(id(shared), []).append(part)
        elif id(owner) in seen:
            continue
        elif shared is not None:
            total += native_arena(shared).nbytes
            jobs.append((native_arena(shared).steps(root), None))
        elif isinstance(part, Arena):
            jobs.append((arena_steps(part, key), None))
            total += part.key_use().pages * part.page_size
        else:
            jobs.append((rekey_steps(part, key), part))
            total += part.nbytes
        seen |= {id(owner), id(part)}
    return total, jobs + [(moving(alike, key), None) for alike in frozen.values()]


class Rekeying(Resource):
    """Gives all that the targets (buffers, tensors, QuantizedTensors, arenas) lie in another key,
    in a thread, while others use them.

        with pyccmem.Rekeying(tensor, other, bytes_per_second=1 << 28) as rekeying:
            ...                                       # reads, writes, products
        # here it has finished, or raised what stopped it

    `key` is as for EncryptedBuffer.rekey(): None gives each buffer and each arena a random key of
    its own. It may be closed once this returns. Of a tensor in an arena that can be written the
    whole arena is rekeyed; tensors of a frozen arena go to another one, which all that are given
    here share. What several targets share is done once.

    `bytes_per_second` limits how much is moved, `progress` is called in the thread with the bytes
    done and the total. pause(), resume() and cancel() take effect after at most 1 MiB. A buffer
    that is closed meanwhile ends it with ClosedError, and its keys go then. What
    cancel(), or an error, has left half-way stays usable under both keys, as rekey() says; another
    Rekeying of the same targets goes on. A forked child has no such thread.

    Raises ArgumentTypeError, ArgumentError, ReadOnlyError for pages in a sealed file, ClosedError,
    ForkError; nothing was begun then.
    """

    __slots__ = (
        "_bytes",
        "_cancelled",
        "_done",
        "_failure",
        "_finished",
        "_going",
        "_jobs",
        "_progress",
        "_rate",
        "_thread",
        "_total",
    )

    _instead_of_a_copy = "make another one"

    def __init__(
        self,
        *targets: EncryptedBuffer | EncryptedTensor | QuantizedTensor | Arena,
        key: Key | None = None,
        bytes_per_second: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._rate = checked_rate(bytes_per_second)
        if progress is not None and not callable(progress):
            raise errors.ArgumentTypeError(
                f"progress must be a function or None, not {type(progress).__name__}."
            )
        self._progress = progress
        self._done = 0
        self._total, self._jobs = _jobs(targets, key)
        self._finished = self._cancelled = False
        self._failure: tuple[type[BaseException], Any, dict[str, Any]] | None = None
        self._going = threading.Event()
        self._going.set()
        self._thread = threading.Thread(target=self._run, name="pyccmem-rekeying", daemon=True)
        self._thread.start()

    # ---- in the thread ----

    def _run(self) -> None:
        try:
            while self._jobs:
                steps, _ = self._jobs[0]
                try:
                    run(
                        self._counted(steps),
                        bytes_per_second=self._rate,
                        wait=self._pause,
                    )
                finally:
                    steps.close()  # type: ignore[attr-defined]  # a generator
                del self._jobs[0]
            self._finished = True
        except _Cancelled:
            pass
        except BaseException as error:
            # Not the exception itself, whose traceback would keep what its frames hold.
            self._failure = (type(error), error.args, dict(error.__dict__))
        finally:
            self._jobs = []

    def _counted(self, steps: Steps) -> Steps:
        for count in steps:
            self._done = min(self._done + count, self._total)
            if self._progress is not None:
                self._progress(self._done, self._total)
            yield count

    def _pause(self, seconds: float) -> None:
        """Waits so long, and as long as it is paused; no longer than until the buffer is closed,
        whose keys the steps keep. Raises _Cancelled."""
        end = time.monotonic() + seconds
        buffer = self._jobs[0][1]
        while not self._cancelled:
            left = end - time.monotonic()
            if self._going.is_set():
                if left <= 0:
                    return
                time.sleep(min(left, _LOOK))
            else:
                self._going.wait(_LOOK)
            if buffer is not None and buffer.closed:
                return
        raise _Cancelled

    # ---- for the caller ----

    @property
    def done(self) -> int:
        """Bytes that are done with."""
        return self._done

    @property
    def total(self) -> int:
        """Bytes of the targets, about: they may grow meanwhile."""
        return self._total

    @property
    def running(self) -> bool:
        """True until it has finished, failed, or was cancelled; while it is paused, too."""
        return self._thread.is_alive()

    @property
    def finished(self) -> bool:
        """True once all is under the new key."""
        return self._finished

    @property
    def paused(self) -> bool:
        """True between pause() and resume()."""
        return not self._going.is_set()

    @property
    def closed(self) -> bool:
        """True when the thread has ended."""
        return not self.running

    def pause(self) -> None:
        """Stops until resume()."""
        self._going.clear()

    def resume(self) -> None:
        """Goes on."""
        self._going.set()

    def cancel(self) -> None:
        """Stops for good, and waits until the thread has ended."""
        self._cancelled = True
        self._going.set()
        self._thread.join()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the thread has ended, at most `timeout` seconds. Returns True if all is under
        the new key. Raises what stopped it, such as IntegrityError for a damaged page, and
        ForkError in a forked child, which has no such thread; ArgumentError, ArgumentTypeError for
        `timeout`."""
        if not (timeout is None or isinstance(timeout, (int, float))):
            raise errors.ArgumentTypeError(
                f"timeout must be seconds or None, not {type(timeout).__name__}."
            )
        if timeout is not None and not timeout <= threading.TIMEOUT_MAX:
            raise errors.ArgumentError(
                f"timeout is {timeout!r}; it must be at most {threading.TIMEOUT_MAX:.0f} seconds, "
                f"or None for no limit."
            )
        self._thread.join(timeout)
        if self._failure is not None:
            raise _again(*self._failure)
        if not (self._finished or self._cancelled or self._thread.is_alive()):
            raise errors.ForkError(
                "This Rekeying belongs to the process that this one was forked from, and its "
                "thread does not follow a fork."
            )
        return self._finished

    def close(self) -> None:
        """Does what cancel() does."""
        self.cancel()

    def __enter__(self) -> Rekeying:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Waits for the end; after an exception in the block cancels instead."""
        if kind is None:
            self.wait()
        else:
            self.cancel()

    def _description(self) -> str:
        state = "finished" if self._finished else "paused" if self.paused else "running"
        if not self.running and not self._finished:
            state = "cancelled" if self._failure is None else "failed"
        return f"{self._done} of {self._total} bytes, {state}"
