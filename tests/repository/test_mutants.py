# SPDX-License-Identifier: Apache-2.0
"""The list of changes that `make mutants` makes fits the sources it is about."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from native_build import CSRC, ROOT

LIST = Path(__file__).resolve().parent.parent / "proofs" / "mutants"


def test_every_change_fits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And has tests that there are."""
    monkeypatch.syspath_prepend(str(LIST))
    import changes

    names = [change.name for change in changes.CHANGES]
    assert len(names) >= 120 and len(set(names)) == len(names)
    wrong = []
    for change in changes.CHANGES:
        place = CSRC if (CSRC / change.file).is_file() else ROOT / "src" / "pyccmem"
        if (place / change.file).read_text(encoding="utf-8").count(change.old) != 1:
            wrong.append(change.name)
        assert change.old != change.new and change.file in changes.MODULES, change.name
        for tests in (*change.tests, *changes.MODULES[change.file]):
            for argument in tests.arguments:
                file, _, name = argument.partition("::")
                text = (ROOT / file).read_text(encoding="utf-8")
                assert not name or f"def {name}(" in text, f"{change.name}: {argument}"
    sys.modules.pop("changes")
    assert not wrong, "their old text is not in the file, or more than once"
