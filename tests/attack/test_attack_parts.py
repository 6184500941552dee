# SPDX-License-Identifier: Apache-2.0
"""The parts of `pyccmem attack`: what is looked for, what a way makes of a process, and what the
command makes of that."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
import secret_search
import support

from pyccmem import audit, errors
from pyccmem.attack import keys, outcome, report, rules, trial, wanted, words
from pyccmem.attack.job import PLAIN, PROTECTED, Rehearsal, Sizes
from pyccmem.attack.look import BLIND, READ, REFUSED, UNTRIED, Look
from pyccmem.attack.scratch import private_directory, wipe
from pyccmem.attack.trial import AFTER, BEFORE, DURING, ERASED, SERIES
from pyccmem.attack.ways import WAYS, swapping
from pyccmem.attack.ways.changing import Change
from pyccmem.attack.ways.swapping import header
from pyccmem.attack.ways.way import DENIED, Denied, Subject, Untried, Way

pytestmark = support.linux_only


def test_round_keys_and_subkeys() -> None:
    """FIPS 197 by another implementation; CMAC's subkeys by SP 800-38B's example D.3."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    blocks = keys.schedule(key)
    assert [b for n, b in blocks.items() if "round" in n] == secret_search.round_keys(key)
    assert blocks["CMAC subkey 1"].hex() == "cad1ed03299eedac2e9a99808621502f"
    assert blocks["CMAC subkey 2"].hex() == "95a3da06533ddb585d3533010c42a0d9"
    assert len(blocks) == 17


def test_words() -> None:
    """Each token is another word, and text says which tokens it is of."""
    text = words.to_text(range(words.WORDS))
    assert len(set(text.split())) == words.WORDS and text.isascii()
    assert words.to_ids(text) == list(range(words.WORDS))
    assert words.prompt(20, 1) == words.prompt(20, 1) != words.prompt(20, 2)
    with pytest.raises(KeyError):
        words.to_ids("hello")


def rehearsal() -> Rehearsal:
    rows = {f"kv/k{n}": os.urandom(64) for n in range(10)}
    ids = tuple(words.to_ids(words.prompt(40, 0)))
    answer = tuple(words.to_ids(words.prompt(24, 9)))
    return Rehearsal(rows, ids, answer, words.to_text(answer), 1.0)


def everything() -> wanted.Wanted:
    made = rehearsal()
    weights = {f"weights/w{n}": os.urandom(64) for n in range(10)}
    return wanted.wanted(
        made,
        weights,
        os.urandom(32),
        os.urandom(64),
        words.to_text(made.ids),
        [words.prompt(40, 1)],
        Sizes(prompt=40),
    )


def test_what_is_looked_for() -> None:
    """All kinds; a place counts once, whatever its forms."""
    found = everything()
    assert set(found.kinds) == {
        "weights",
        "keys",
        "kv",
        "prompt",
        "ids",
        "answer",
        "answer ids",
        "earlier",
        "marker",
    }
    assert found.kinds["kv"] == found.kinds["weights"] == 10 and found.kinds["keys"] == 17
    assert len(found.native) > sum(found.kinds.values())  # there are forms beside
    report = audit.Report(0, "", "", 0, tensors={"kv/k1": 1, "kv/k1/bfloat16": 1, "kv/k2/x": 1})
    assert found.found(report) == {"kv": 2}


@pytest.mark.parametrize(
    "text", ["naïve words in a café, élégant", "谁在内存中找到这些字谁就读过另一"]
)
def test_text_beyond_ascii(text: str, tmp_path: Path) -> None:
    """Is found in every form in which Python, or a program, may hold it."""
    looked = wanted.Wanted(wanted.text_parts("text", text))
    assert looked.kinds["text"] >= 1
    codecs = ["utf-8", "utf-16-le", "utf-32-le"]
    if all(ord(letter) < 256 for letter in text):
        codecs.append("latin-1")
    for codec in codecs:
        (tmp_path / "memory").write_bytes(bytes(64) + text.encode(codec) + bytes(64))
        report = audit.scan_file(tmp_path / "memory", looked.native, wide=True)
        assert looked.found(report) == looked.kinds, codec


# ---- ways ----


class Stub(Way):
    """A way that gives what it is told."""

    name = title = "stub"

    def __init__(self, gives: Any) -> None:
        self.gives = gives

    def reports(self, subject: Subject) -> list[audit.Report]:
        if isinstance(self.gives, Exception):
            raise self.gives
        return [audit.Report(0, "", "", 0, tensors=self.gives)]


@pytest.mark.parametrize(
    ("gives", "status"),
    [
        ({"marker/0": 1, "kv/k1": 1}, READ),
        ({"marker/0": 1}, READ),
        ({"kv/k1": 1}, BLIND),  # whatever it found: without the marker nobody knows what it read
        ({}, BLIND),
        (Untried("no gdb"), UNTRIED),
        (Denied("no core"), DENIED),
        (errors.NoPermissionError("closed"), DENIED),
    ],
)
def test_a_way_must_find_the_marker(gives: Any, status: str, tmp_path: Path) -> None:
    look = Stub(gives).look(Subject("p", 1, everything(), tmp_path), BEFORE)
    assert look.status == status
    assert look.found == ({"kv": 1} if isinstance(gives, dict) and "kv/k1" in gives else {})


def test_what_is_denied() -> None:
    """It is the process's doing only if the twin could be read in that way."""
    looks = [
        Look("mem", BEFORE, PLAIN, READ),
        Look("mem", BEFORE, PROTECTED, DENIED),
        Look("abort", BEFORE, PLAIN, DENIED),
        Look("abort", BEFORE, PROTECTED, DENIED),
    ]
    statuses = [look.status for look in trial.resolved(looks)]
    assert statuses == [READ, REFUSED, UNTRIED, UNTRIED]
    assert trial.resolved(looks, closed=False)[1].status == UNTRIED


def test_a_swap_files_header() -> None:
    """As mkswap writes it: version, last page, number of bad pages, magic (swap.h)."""
    page = header(100)
    assert len(page) == os.sysconf("SC_PAGE_SIZE") and page.endswith(b"SWAPSPACE2")
    numbers = [int.from_bytes(page[at : at + 4], "little") for at in (1024, 1028, 1032)]
    assert numbers == [1, 99, 0] and not any(page[:1024])


def test_another_swap_file_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that an attack has left that was killed gets half of the pages: nothing is tried, in
    place of a run that is void. One of a lower priority gets none."""
    swaps = tmp_path / "swaps"
    rows = ["Filename Type Size Used Priority", "/low/swap file 70140 0 -2"]
    swaps.write_text("\n".join(rows) + "\n")
    assert swapping._first(swaps) == []
    swaps.write_text("\n".join([*rows, "/dev/sda2 partition 9 9 32767"]) + "\n")
    assert swapping._first(swaps) == ["/dev/sda2"]
    assert swapping._first(tmp_path / "none") == []
    monkeypatch.setattr(swapping, "_first", lambda: ["/left/swap"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(Untried, match=r"/left/swap takes a part .* swapoff"):
        WAYS["swap"]().reports(None)  # type: ignore[arg-type]


def test_dumps_are_wiped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), private_directory(str(tmp_path)) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "core").write_bytes(b"secret" * 300_000)
        # A second name shows what is left of the file's content.
        os.link(folder / "core", tmp_path / "left")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["left"]
    assert not any((tmp_path / "left").read_bytes())
    wipe(tmp_path / "nothing")
    (tmp_path / "left").chmod(0o600)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="no space"):
        wipe(tmp_path / "left")
    assert os.listdir(tmp_path) == []  # removed, if it cannot be overwritten


# ---- what it means ----

WANTED = {"weights": 5, "keys": 5, "kv": 5, "prompt": 5, "earlier": 5}


def looks(**changes: dict[str, int]) -> list[Look]:
    """Those of a run that shows all, but for `changes` of the protected ones by moment."""
    found = []
    for moment in (BEFORE, DURING, AFTER, ERASED):
        twin = {kind: 5 for kind in rules.Rules().certain(moment, WANTED) if kind in WANTED}
        found.append(Look("mem", moment, PLAIN, READ, found=twin))
        found.append(Look("mem", moment, PROTECTED, READ, found=changes.get(moment, {})))
    return found


def judged(seen: list[Look], series: tuple[Look, ...] = (), **options: Any) -> outcome.Outcome:
    ways = [WAYS["mem"](), WAYS["over-read"]()]
    full = {kind: 5 for kind in ("unrotated", "hidden", "ids", "answer", "answer ids")}
    for at, look in enumerate(seen):
        if look.process == PLAIN and look.moment == DURING and look.way == "mem":
            seen[at] = Look("mem", DURING, PLAIN, look.status, found={**full, **look.found})
    changes = options.pop("changes", [Change("flips", PLAIN, 8, 0, 8)])
    result = trial.Result(
        seen, list(series), changes, {PLAIN: {**WANTED, **full}, PROTECTED: {**WANTED, **full}}
    )
    return outcome.Outcome("title", {}, ways, result, "clean", **options)


def test_a_run_that_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = judged(looks(during={"prompt": 5}), (Look("mem", SERIES, PROTECTED, READ),))
    assert found.voids() == found.failures() == found.untried() == []
    assert found.document()["passed"]
    report.show(found)
    said = capsys.readouterr().out
    assert "5 > 0" in said and "The unprotected twin was found out" in said


@pytest.mark.parametrize(
    ("moment", "kind", "count"),
    [
        (BEFORE, "weights", 1),
        (DURING, "kv", 1),
        (DURING, "unrotated", 1),
        (DURING, "hidden", 1),
        (DURING, "keys", 1),
        (AFTER, "prompt", 1),
        (AFTER, "earlier", 1),
        (ERASED, "kv", 1),
    ],
)
def test_what_should_not_be_found(moment: str, kind: str, count: int) -> None:
    found = judged(looks(**{moment: {kind: count}}))
    assert found.voids() == [] and len(found.failures()) == 1
    assert f"{moment}: up to 1 of 5 {kind} were found by mem" in found.failures()[0]
    assert not found.document()["passed"]


@pytest.mark.parametrize(
    ("kind", "units"), [("weights", 1), ("kv", 1), ("unrotated", 1), ("hidden", 2)]
)
def test_what_is_in_use_at_work(kind: str, units: int) -> None:
    """As many samples as there are, but of so many layers or matrices."""
    for more in (0, 1):
        found = {kind: 5, "prompt": 5}
        seen = Look("mem", SERIES, PROTECTED, READ, found=found, units={kind: units + more})
        failures = judged(looks(), (seen,)).failures()
        assert len(failures) == more
        if more:
            assert f"5 {kind} were found by mem" in failures[0]
            assert f"of {units + 1} {'matrices' if kind == 'weights' else 'layers'}" in failures[0]


def test_keys_are_in_use_at_no_moment() -> None:
    key = Look("mem", SERIES, PROTECTED, READ, found={"keys": 1}, units={"keys": 1})
    assert len(judged(looks(), (key,)).failures()) == 1


def test_of_how_many_layers() -> None:
    """Rows of a layer count once, in whatever form; so do those of a matrix."""
    names = [
        "kv/layer 1[k0, 7]",
        "kv/layer 1[v0, 8]",
        "kv/layer 3[v0, 8]",
        "weights/a.weight[2, 3]",
    ]
    looked = wanted.Wanted({name: os.urandom(16) for name in names})
    for count, expected in ((2, {"kv": 1}), (3, {"kv": 2}), (4, {"kv": 2, "weights": 1})):
        tensors = {name: 1 for name in names[:count]} | {f"{names[0]}/bfloat16": 1}
        assert looked.units(audit.Report(0, "", "", 0, tensors=tensors)) == expected


def test_a_void_run() -> None:
    """A twin that is not found out in full, a blind way, changes that pass unseen, no way at
    all."""
    seen = looks()
    seen[0] = Look("mem", BEFORE, PLAIN, READ, found={"weights": 4, "keys": 5})
    assert "only 4 of 5 weights" in judged(seen).voids()[0]
    seen = [*looks(), Look("gcore", BEFORE, PLAIN, BLIND, "nothing seen")]
    assert "nothing seen" in judged(seen).voids()[0]
    seen = [*looks(), Look("over-read", DURING, PLAIN, READ)]
    assert "nothing was found" in judged(seen).voids()[0]
    few = [Change("flips", PLAIN, 8, 0, 7)]
    assert "7 of 8" in judged(looks(), changes=few).voids()[0]
    seen = [Look("mem", BEFORE, name, UNTRIED, "no ptrace") for name in (PLAIN, PROTECTED)]
    found = judged(seen)
    assert len(found.voids()) == 2 and "no ptrace" in found.untried()[0]
    assert not found.document()["passed"]


def test_changes_that_are_not_noticed() -> None:
    missed = Change("flips", PROTECTED, 8, 7, 1)
    found = judged(looks(), changes=[Change("flips", PLAIN, 8, 0, 8), missed])
    assert found.voids() == [] and "1 of 8 changes" in found.failures()[0]


def test_a_way_that_saw_nothing_is_not_clean() -> None:
    seen = [*looks(), Look("gcore", AFTER, PROTECTED, BLIND, "no marker")]
    found = judged(seen)
    assert found.failures() == [] and found.untried() == ["gcore: no marker (after)"]


def test_cores_are_allowed_for_a_while() -> None:
    from pyccmem.attack.command import cores

    before = resource.getrlimit(resource.RLIMIT_CORE)
    with cores():
        assert resource.getrlimit(resource.RLIMIT_CORE) == (before[1], before[1])
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from pyccmem.attack.plot import draw

    series = tuple(
        Look("mem", SERIES, process, READ, found={"prompt": 5}, at=float(at))
        for process in (PLAIN, PROTECTED)
        for at in range(3)
    )
    draw(judged(looks(), series), tmp_path / "hits.png")
    assert (tmp_path / "hits.png").read_bytes().startswith(b"\x89PNG")
