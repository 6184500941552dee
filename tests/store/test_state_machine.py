# SPDX-License-Identifier: Apache-2.0
"""Many random operations: against a plain bytearray, and against independent implementations."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import EncryptedBuffer, errors, hazmat

hypothesis = pytest.importorskip("hypothesis", reason="needs the [test] extra's hypothesis")
from hypothesis import settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.stateful import (  # noqa: E402
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

#: Offsets and lengths near multiples of blocks and pages are where mistakes are.
EDGES = st.builds(
    lambda unit, count, delta: max(0, unit * count + delta),
    st.sampled_from((16, 64, 128, 4096, 65536)),
    st.integers(0, 70),
    st.integers(-17, 17),
)


class BufferModel(RuleBasedStateMachine):
    """An EncryptedBuffer beside a bytearray and a list of versions."""

    def __init__(self) -> None:
        super().__init__()
        self.key = pyccmem.Key.generate()
        self.views: list[memoryview] = []

    @initialize(
        cipher=st.sampled_from(support.CIPHERS),
        page_size=st.sampled_from(support.PAGE_SIZES),
        pages=st.integers(0, 5),
        extra=st.one_of(st.just(0), st.integers(1, 4096)),
        tweak_cache=st.sampled_from((0, 1, 4, 4096)),
        threads=st.sampled_from((1, 2, 3)),
    )
    def make(
        self, cipher: str, page_size: int, pages: int, extra: int, tweak_cache: int, threads: int
    ) -> None:
        self.threads = pyccmem.get_num_threads()
        pyccmem.set_num_threads(threads)
        nbytes = pages * page_size + extra
        self.model = bytearray(nbytes)
        self.page_size = page_size
        self.versions = [0] * -(-nbytes // page_size)
        self.buffer = EncryptedBuffer(
            nbytes, key=self.key, cipher=cipher, page_size=page_size, tweak_cache=tweak_cache
        )

    def clip(self, offset: int, n: int) -> tuple[int, int]:
        offset = min(offset, len(self.model))
        return offset, min(n, len(self.model) - offset)

    @rule(offset=EDGES, n=EDGES, seed=st.integers(0, 255))
    def write(self, offset: int, n: int, seed: int) -> None:
        offset, n = self.clip(offset, n)
        data = random.Random(seed).randbytes(n)
        assert self.buffer.write(data, offset) == n
        self.model[offset : offset + n] = data
        if n:
            for page in range(offset // self.page_size, (offset + n - 1) // self.page_size + 1):
                self.versions[page] += 1

    @rule(offset=EDGES, n=EDGES)
    def read(self, offset: int, n: int) -> None:
        offset, n = self.clip(offset, n)
        assert self.buffer.read(offset, n) == self.model[offset : offset + n]

    @rule(offset=EDGES, n=EDGES, misalign=st.integers(0, 64))
    def read_into(self, offset: int, n: int, misalign: int) -> None:
        offset, n = self.clip(offset, n)
        out = np.full(misalign + n + 64, 0xEE, np.uint8)
        assert self.buffer.read_into(out[misalign : misalign + n], offset) == n
        assert out[misalign : misalign + n].tobytes() == self.model[offset : offset + n]
        assert (out[:misalign] == 0xEE).all() and (out[misalign + n :] == 0xEE).all()

    @rule(past=st.integers(1, 1 << 70), n=EDGES)
    def refused(self, past: int, n: int) -> None:
        for offset, length in (
            (len(self.model) + past, n),
            (-past, n),
            (0, len(self.model) + past),
        ):
            with pytest.raises(errors.RangeError):
                self.buffer.read(offset, length)
        with pytest.raises(errors.RangeError):
            self.buffer.write(bytes(n), len(self.model) + past)

    @rule()
    def read_all(self) -> None:
        assert self.buffer.read() == self.model

    @rule(offset=EDGES, n=EDGES, to=EDGES)
    def write_own_ciphertext(self, offset: int, n: int, to: int) -> None:
        view = self.buffer.ciphertext
        part = view[offset : offset + n]
        to = min(to, len(self.model))
        part = part[: len(self.model) - to]
        stored = bytes(part)
        self.buffer.write(part, to)
        self.model[to : to + len(stored)] = stored
        if stored:
            last = (to + len(stored) - 1) // self.page_size
            for page in range(to // self.page_size, last + 1):
                self.versions[page] += 1

    @precondition(lambda self: self.buffer.authenticated)
    @rule()
    def verify(self) -> None:
        assert self.buffer.verify() == []

    @precondition(lambda self: len(self.views) < 3)
    @rule()
    def keep_a_view(self) -> None:
        self.views.append(self.buffer.ciphertext)

    @invariant()
    def versions_agree(self) -> None:
        if hasattr(self, "buffer"):
            assert self.buffer.versions.tolist() == self.versions
            assert len(self.buffer.ciphertext) == len(self.versions) * self.page_size

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            assert self.buffer.read() == self.model
            last = bytes(self.buffer.ciphertext)
            self.buffer.close()
            assert all(bytes(view) == last for view in self.views)
            pyccmem.set_num_threads(self.threads)
        self.key.close()


TestBufferModel = BufferModel.TestCase
TestBufferModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)

# ---- 100,000 operations against an independent implementation -----------------------------------

XTS_OPERATIONS = 60_000
BUFFER_OPERATIONS = 42_000
CHILDREN = len(support.TIER_NAMES) * len(support.CIPHERS) * 3
PER_CHILD = -(-BUFFER_OPERATIONS // CHILDREN)


def test_60000_data_units_against_cryptography() -> None:
    """Random keys, tweaks, lengths and directions, spread over all tiers."""
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    seed = random.Random(20_18)
    names = support.TIER_NAMES
    done = dict.fromkeys(names, 0)
    for number in range(XTS_OPERATIONS):
        n = seed.randint(16, 96) if number % 8 else seed.randint(97, 1200)
        key = seed.randbytes(32 if number % 3 else 64)
        tweak, text = seed.randbytes(16), seed.randbytes(n)
        name = names[number % len(names)]
        if seed.getrandbits(1):
            assert hazmat.xts_encrypt(key, tweak, text, tier=name) == oracle.xts_encrypt(
                key, tweak, text
            )
        else:
            assert hazmat.xts_decrypt(key, tweak, text, tier=name) == oracle.xts_decrypt(
                key, tweak, text
            )
        done[name] += 1
    assert sum(done.values()) == XTS_OPERATIONS and min(done.values()) > 0


#: The child does the operations with a store id that the parent knows, and reports its ciphertext
#: every so often; the parent replays them on a bytearray and opens each page by itself.
OPERATIONS = (
    support.TAGS_OF
    + """
import random, sys
import pyccmem
number, count, cipher, page_size, nbytes = map(
    lambda word: int(word) if word.isdigit() else word, sys.argv[1:])
seed = random.Random(number)
with pyccmem.Key.from_bytes(bytes(range(32))) as key:
    b = pyccmem.EncryptedBuffer(nbytes, key=key, cipher=cipher, page_size=page_size)
    model = bytearray(nbytes)
    out = sys.stdout.buffer
    for step in range(1, count + 1):
        offset = seed.randrange(nbytes)
        n = min(seed.choice((0, 1, 16, 63, 64, 300, 4096, page_size, 2 * page_size + 5)),
                nbytes - offset)
        if seed.random() < 0.5:
            data = seed.randbytes(n)
            b.write(data, offset)
            model[offset : offset + n] = data
        else:
            assert b.read(offset, n) == model[offset : offset + n], (step, offset, n)
        if step % (count // 10) == 0:
            out.write(bytes(b.ciphertext) + tags_of(b) + b.versions.tobytes() + bytes(model))
"""
)


@pytest.mark.parametrize("name", support.TIER_NAMES)
@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_42000_buffer_operations_against_others(
    fixed_random: dict[str, str], cipher: str, page_size: int, name: str
) -> None:
    """After every tenth of the operations, all stored pages are opened independently."""
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    count = PER_CHILD
    pages = 8 if page_size < 65536 else 4
    nbytes = pages * page_size - 100
    done = subprocess.run(
        [sys.executable, "-c", OPERATIONS]
        + [str(word) for word in (page_size, count, cipher, page_size, nbytes)],
        env=fixed_random | {"PYCCMEM_TIER": name},
        cwd="/",
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    subkey = oracle.subkey(cipher, b"\x37" * 16, page_size)
    printed = done.stdout
    assert len(printed) == 10 * (pages * (page_size + 16 + 8) + nbytes)
    while printed:
        stored, printed = printed[: pages * page_size], printed[pages * page_size :]
        tags, printed = printed[: pages * 16], printed[pages * 16 :]
        versions, printed = np.frombuffer(printed, "<u8", pages), printed[pages * 8 :]
        model, printed = printed[:nbytes], printed[nbytes:]
        model += bytes(pages * page_size - nbytes)
        for page, version in enumerate(versions.tolist()):
            cut, tag = slice(page * page_size, (page + 1) * page_size), tags[16 * page :][:16]
            if version:
                opened = oracle.open_page(cipher, subkey, page, version, stored[cut], tag)
                assert opened == model[cut], page
            else:
                assert model[cut] == bytes(page_size) and tag == bytes(16)
    assert versions.min() > 0


def test_the_operations_add_up_to_100000() -> None:
    assert XTS_OPERATIONS + CHILDREN * PER_CHILD >= 100_000
