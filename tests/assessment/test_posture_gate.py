# SPDX-License-Identifier: Apache-2.0
"""posture(require=...) fails closed: for each line and each state that is not enough, for what
cannot be looked at, and for names that do not exist."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import pyccmem
from pyccmem import errors
from pyccmem.assessment import LEVELS, NAMES, STATES, Line, Posture, gate, guarding, table
from pyccmem.assessment.subject import Subject

FAILING = STATES[1:]


def lines(**states: str) -> tuple[Line, ...]:
    """All lines good, but those named; "_" in a name is "-"."""
    by_name = {name.replace("_", "-"): state for name, state in states.items()}
    assert by_name.keys() <= set(NAMES)
    return tuple(
        Line(name, state, "what was seen", "why", "" if state == "good" else f"mend {name}")
        for name in NAMES
        for state in [by_name.get(name, "good")]
    )


def seen(monkeypatch: pytest.MonkeyPatch, **states: str) -> None:
    monkeypatch.setattr(gate, "look", lambda _: lines(**states))


def test_all_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same calls that must raise below."""
    seen(monkeypatch)
    found = pyccmem.posture(require=[*LEVELS, *NAMES, *(f"{name}:weak" for name in NAMES)])
    assert found.level == "confidential" and found.pid == os.getpid()


@pytest.mark.parametrize("state", FAILING)
@pytest.mark.parametrize("name", NAMES)
def test_each_line_fails_closed(name: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, **{name: state})
    for require in ([name], name, ("tier:weak", name)):
        with pytest.raises(errors.PostureError) as caught:
            pyccmem.posture(require=require)
        assert [(line.name, line.state) for line in caught.value.lines] == [(name, state)]
        for word in (f"{name} is {state}", "what was seen", f"mend {name}"):
            assert word in str(caught.value)
        assert caught.value.posture[name].state == state
    if state == "weak":
        pyccmem.posture(require=f"{name}:weak")
    else:
        with pytest.raises(errors.PostureError):
            pyccmem.posture(require=f"{name}:weak")
    pyccmem.posture(require=[other for other in NAMES if other != name])


@pytest.mark.parametrize("state", FAILING)
@pytest.mark.parametrize("level", LEVELS)
def test_each_line_of_a_level_counts(
    level: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {one.removesuffix(":weak"): one.endswith(":weak") for one in LEVELS[level]}
    strict = {one for one in LEVELS[level] if not one.endswith(":weak")}
    for name in NAMES:
        seen(monkeypatch, **{name: state})
        enough = name not in asked or (state == "weak" and name not in strict)
        reached = pyccmem.posture().level
        order = ["none", *LEVELS]
        if enough:
            pyccmem.posture(require=level)
            assert order.index(reached) >= order.index(level)
        else:
            with pytest.raises(errors.PostureError, match=f"{name} is {state}"):
                pyccmem.posture(require=level)
            assert order.index(reached) < order.index(level)


def test_levels_contain_those_before_them() -> None:
    before: set[str] = set()
    for level, wanted in LEVELS.items():
        assert before < set(wanted), level
        assert {one.removesuffix(":weak") for one in wanted} <= set(NAMES)
        before = set(wanted)


def test_several_lines_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, swap="bad", lockdown="unknown", dumpable="weak")
    with pytest.raises(errors.PostureError) as caught:
        pyccmem.posture(require=["confidential", "swap", "no-dumps"])
    assert [line.name for line in caught.value.lines] == ["dumpable", "swap", "lockdown"]


@pytest.mark.parametrize(
    "require", ["", "swap ", "Swap", "swap:bad", "minimal:weak", ":weak", "x\n"]
)
def test_names_that_do_not_exist(require: str) -> None:
    """They are refused, and the sentence has those that do."""
    for given in (require, ["swap", require]):
        with pytest.raises(errors.ArgumentError) as caught:
            pyccmem.posture(require=given)
        assert all(name in str(caught.value) for name in (*LEVELS, *NAMES, ascii(require)))


@pytest.mark.parametrize("require", [None, 3, [None], ["swap", 3], [b"swap"], b"swap", object()])
def test_what_is_no_name(require: Any) -> None:
    with pytest.raises(errors.ArgumentTypeError):
        pyccmem.posture(require=require)


def test_names_of_any_iterable(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, swap="bad")
    with pytest.raises(errors.PostureError):
        pyccmem.posture(require=(name for name in ["tier", "swap"]))
    with pytest.raises(errors.PostureError):
        pyccmem.posture(require={"swap": 1})


@pytest.mark.parametrize(
    ("pid", "kind"),
    [
        ("1", errors.ArgumentTypeError),
        (1.0, errors.ArgumentTypeError),
        (0, errors.ArgumentError),
        (-1, errors.ArgumentError),
        (2**22 + 1, errors.NoProcessError),
        (2**70, errors.NoProcessError),
    ],
)
def test_what_is_no_process(pid: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        pyccmem.posture(pid=pid)


# ---- looks that do not come to their end ---------------------------------------------------------


def looks() -> Iterator[tuple[str, str]]:
    for group in ("_LIBRARY", "_MACHINE"):
        for name in getattr(table, group):
            yield group, name


@pytest.mark.parametrize("kind", [OSError, ValueError, MemoryError, AttributeError, KeyError])
@pytest.mark.parametrize(("group", "name"), list(looks()))
def test_a_look_that_fails_is_unknown(
    group: str, name: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Subject) -> None:
        raise kind("a reason\nof two lines")

    why = getattr(table, group)[name][1]
    monkeypatch.setitem(getattr(table, group), name, (fail, why))
    with pytest.raises(errors.PostureError) as caught:
        pyccmem.posture(require=name)
    found = caught.value.lines[0]
    assert found.state == "unknown" and kind.__name__ in found.seen and "\n" not in found.seen


def test_an_interrupt_is_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Subject) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(table._LIBRARY, "tier", (stop, "why"))
    with pytest.raises(KeyboardInterrupt):
        pyccmem.posture()


@pytest.mark.parametrize("found", [OSError("no"), (), None])
def test_parts_of_guard_that_are_not_told_are_unknown(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts() -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(guarding.hardening, "parts", parts)
    states = {line.name: line.state for line in pyccmem.posture()}
    assert {states[name] for name in table._GUARD} == {"unknown"}


def test_every_part_of_guard_has_a_line() -> None:
    assert {part.name for part in pyccmem.hardening.parts()} == set(table._GUARD)


# ---- the object ----------------------------------------------------------------------------------


def test_posture_of_this_process() -> None:
    found = pyccmem.posture()
    assert isinstance(found, Posture) and [line.name for line in found] == list(NAMES)
    assert len(found) == len(NAMES)
    for line in found:
        assert line.state in STATES and line.seen and line.why
        assert bool(line.remedy) == (line.state != "good"), line
        assert not line.remedy.endswith(".") and not line.why.endswith(".")
        assert line.name in str(found) and line.seen in str(found) and line.remedy in str(found)
    assert found["swap"].name == "swap"
    with pytest.raises(errors.ArgumentError, match="no line 'bogus'"):
        found["bogus"]
    with pytest.raises(errors.ArgumentError):
        found.failed("bogus")
    counted = sum(line.state == "good" for line in found)
    assert repr(found).startswith(f"<pyccmem.Posture of process {os.getpid()}: level {found.level}")
    assert f"{counted} good" in repr(found)


def test_the_form_of_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs read it: names and kinds of all fields."""
    seen(monkeypatch, swap="bad")
    found = pyccmem.posture().to_dict()
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["pid", "level", "levels", "lines"]
    assert (found["pid"], found["level"]) == (os.getpid(), "minimal")
    assert found["levels"] == {name: name == "minimal" for name in LEVELS}
    assert [one["name"] for one in found["lines"]] == list(NAMES)
    swap = found["lines"][NAMES.index("swap")]
    assert swap == {
        "name": "swap",
        "state": "bad",
        "seen": "what was seen",
        "why": "why",
        "remedy": "mend swap",
    }


def test_the_error_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen(monkeypatch, swap="bad")
    with pytest.raises(errors.PostureError) as caught:
        pyccmem.posture(require="swap")
    for copied in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert str(copied) == str(caught.value) and copied.lines == caught.value.lines
        assert copied.posture["swap"].state == "bad"
