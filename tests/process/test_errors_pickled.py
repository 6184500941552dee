# SPDX-License-Identifier: Apache-2.0
"""Every exception of pyccmem goes to another process and is the same there: pools, Ray and others
pickle what a task raised."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

import pyccmem
from pyccmem import errors

KINDS = [getattr(errors, name) for name in errors.__all__]
SYSTEM = [kind for kind in KINDS if issubclass(kind, OSError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_pickled_and_back(kind: type[Exception]) -> None:
    made = kind("a sentence.")
    made.add_note("a note") if hasattr(made, "add_note") else None
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        found = pickle.loads(pickle.dumps(made, protocol))
        assert type(found) is kind and str(found) == str(made) and found.args == made.args
        assert vars(found) == vars(made)
    assert type(copy.copy(made)) is kind


@pytest.mark.parametrize("kind", SYSTEM, ids=lambda kind: kind.__name__)
def test_number_and_name_of_a_failed_call(kind: type[OSError]) -> None:
    assert len(SYSTEM) >= 7
    made = kind("a sentence.")
    for number, name in ((errno.EACCES, "/a/file"), (errno.ENOENT, None)):
        found = pickle.loads(pickle.dumps(made.of_system(number, name)))  # type: ignore[attr-defined]
        assert (found.errno, found.filename) == (made.errno, made.filename)
        assert found.errno == number and type(found) is type(made)
        assert str(found) == str(made)


def test_what_they_carry() -> None:
    made = errors.IntegrityError("a page.", name="weight", page=3, version=1, offset=12288)
    found = pickle.loads(pickle.dumps(made))
    assert (found.name, found.page, found.version, found.offset) == ("weight", 3, 1, 12288)
    failed = pickle.loads(pickle.dumps(errors.SelfTestError("a test.", {"failed": ["aes"]})))
    assert failed.result == {"failed": ["aes"]}
    seen = pyccmem.posture()
    refused = errors.PostureError("a line.", tuple(seen), seen)
    again = pickle.loads(pickle.dumps(refused))
    assert again.lines == refused.lines and str(again.posture) == str(seen)
