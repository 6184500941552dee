# SPDX-License-Identifier: Apache-2.0
"""`pyccmem bench --only pages --only bulk`: every suite is measured, beside the peers that have it,
and what computes something else is noticed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support import linux_only, not_sanitized

from pyccmem import measure
from pyccmem.bench import algorithms, bulk, common, pages, peers
from pyccmem.bench.rounds import CheckError, Figure, Plan, Target

pytestmark = [linux_only, not_sanitized]

SUITES = pytest.mark.parametrize("cipher", list(measure.SUITES))

NOBODY = peers.Peers((), None, ())


def plan(cipher: str) -> Plan:
    return Plan(rounds=1, quick=True, ciphers=(cipher,))


def of_peers(found: list[Figure]) -> set[str]:
    return {figure.id.rpartition("/")[2] for figure in found if figure.kind == "peer"}


@SUITES
def test_pages_of_every_suite_are_measured_beside_those_who_have_it(cipher: str) -> None:
    found = list(pages.figures(plan(cipher)))
    native = peers.find().natives(cipher)
    assert of_peers(found) == {peer.name for peer in native}
    over = [figure for figure in found if "/over " in figure.id]
    limits = pages.TARGETS_OVER.get(cipher, {})
    same = [
        peer.name
        for peer in native
        if peer.does[cipher] == cipher or (cipher, peer.does[cipher]) in algorithms.SAME_WORK
    ]
    judged = [name for name in same if name.startswith(tuple(limits))] if limits else []
    assert len(over) == 2 * len(judged)
    even = [figure for figure in found if "/open over seal/" in figure.id]
    assert len(even) == (cipher in pages.EVEN)
    assert all(figure.value.median > 0 for figure in found)


@SUITES
def test_bulk_of_every_suite_is_measured(cipher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "size", lambda _: 1 << 20)
    found = list(bulk.figures(plan(cipher)))
    expected = {peer.name for peer in peers.find().natives(cipher)}
    python = peers.find().python
    if python and cipher in python.does:
        expected.add(python.name)
    assert of_peers(found) == expected
    ours = [figure for figure in found if figure.id == f"bulk/{cipher}/read_into"]
    assert [figure.target for figure in ours] == [
        Target(bulk.TARGETS[cipher]) if cipher in bulk.TARGETS else None
    ]


@SUITES
def test_a_suite_that_no_peer_has_is_measured_without(
    cipher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find", lambda: NOBODY)
    monkeypatch.setattr(bulk, "size", lambda _: 1 << 20)
    for figures in (pages.figures, bulk.figures):
        found = list(figures(plan(cipher)))
        assert found and not of_peers(found)


def test_every_suite_is_in_the_table() -> None:
    assert set(measure.SUITES) <= set(algorithms.ALGORITHMS)
    for name, suite in measure.SUITES.items():
        assert algorithms.of(name).tagged == bool(suite.tag_size)
    with pytest.raises(CheckError, match="no entry for this suite"):
        algorithms.of("rot13")


def test_who_has_a_suite_is_compared_in_it() -> None:
    """AES-256-GCM was once compared with AES-128-GCM under a key of the wrong size."""
    found = peers.find()
    for peer in (*found.native, *([found.python] if found.python else [])):
        assert peer.does, f"{peer.name} has nothing"
        for cipher, does in peer.does.items():
            assert does in (cipher, algorithms.INSTEAD.get(cipher))
        if not peer.name.startswith("libaegis"):
            assert peer.does["aes-256-gcm"] == "aes-256-gcm"
            assert peer.does["aegis-128x2"] == "aes-128-gcm"


@pytest.mark.parametrize("tagged", [False, True])
def test_a_peer_that_does_something_else_is_noticed(tagged: bool) -> None:
    native = [peer for peer in peers.find().native if not peer.name.startswith("libaegis")]
    if not native:
        pytest.skip("no OpenSSL or libgcrypt, or no C compiler")
    compare = peers._compare_tagged if tagged else peers._compare
    name = "aes-256-gcm" if tagged else "aes-256-xts"
    for peer in native:
        compare(peer, name)
        wrong = dataclasses.replace(
            peer, make=lambda name, seal, key, peer=peer: peer.make(name, seal, key[::-1])
        )
        with pytest.raises(CheckError, match="the result is wrong"):
            compare(wrong, name)


@SUITES
def test_a_kernel_that_leaves_pages_alone_is_noticed(
    cipher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = pages.Pages("portable", cipher, "seal")
    checked.check()
    monkeypatch.setattr(checked, "seconds", lambda repeats: 1.0)
    if cipher in common.TAGGED:
        checked.out[:] = checked.memory
        monkeypatch.setattr(checked, "out", Unchanging(checked.out))
    with pytest.raises(CheckError, match="untouched"):
        checked.check()


class Unchanging:
    """Memory to which nothing is written."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory

    def __setitem__(self, where: object, what: object) -> None:
        pass

    def view(self, dtype: object) -> np.ndarray:
        return self.memory.view(dtype)
