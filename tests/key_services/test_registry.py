# SPDX-License-Identifier: Apache-2.0
"""URIs of keys: which scheme they have, and what they give."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from pyccmem import Key, errors
from pyccmem.key_services import Held, from_uri, schemes


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "a key%20.key"
    path.write_text("0123456789abcdef" * 4)
    path.chmod(0o600)
    return path


def test_files(key_file: Path) -> None:
    name = str(key_file).replace("%", "%25")
    with Key.from_file(key_file) as wanted:
        for uri in (f"file:{name}", f"file://{name}", f"FILE://localhost{name}"):
            with from_uri(uri) as found:  # type: ignore[union-attr]
                assert isinstance(found, Key) and found.id == wanted.id


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        (7, errors.ArgumentTypeError),
        (None, errors.ArgumentTypeError),
        ("", errors.ArgumentError),
        ("0123456789abcdef" * 4, errors.ArgumentError),
        (":x", errors.ArgumentError),
        ("fi le:x", errors.ArgumentError),
        ("file:", errors.ArgumentError),
        ("file:///", errors.KeyFileError),
        ("file:nul%00l", errors.ArgumentError),
        ("file://elsewhere/x", errors.ArgumentError),
        ("file:/nowhere/at/all", errors.MissingKeyFileError),
        ("unheard-of:x", errors.ArgumentError),
    ],
)
def test_uris_that_give_nothing(uri: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        from_uri(uri)
    assert "0123456789abcdef" not in str(caught.value)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package that offers a scheme, one without from_uri, and one of pyccmem's own."""
    directory = tmp_path / "installed"
    package = directory / "schemes_of_others-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: schemes-of-others\nVersion: 1\n"
    )
    (directory / "schemes_of_others.py").write_text(
        "class Provider:\n"
        "    name = 'others'\n"
        "    def __init__(self, uri):\n        self.uri = uri\n"
        "    @classmethod\n"
        "    def from_uri(cls, uri):\n        return cls(uri)\n"
        "    def wrap_key(self, key, context): ...\n"
        "    def unwrap_key(self, wrapped, context): ...\n"
        "class Half(Provider):\n"
        "    def wrap_key(self, key): ...\n"
        "class Nothing:\n"
        "    @staticmethod\n"
        "    def from_uri(uri):\n        return 7\n"
        "instance = object()\n"
    )
    (package / "entry_points.txt").write_text(
        "[pyccmem.key_providers]\n"
        "others = schemes_of_others:Provider\n"
        "half = schemes_of_others:Half\n"
        "nothing = schemes_of_others:Nothing\n"
        "instance = schemes_of_others:instance\n"
        "file = schemes_of_others:Provider\n"
    )
    monkeypatch.syspath_prepend(str(directory))
    importlib.invalidate_caches()
    return directory


def test_schemes_of_other_packages(installed: Path, key_file: Path) -> None:
    assert {"file", "others"} <= set(schemes())
    found: Any = from_uri("others:a?b=c")
    assert found.uri == "others:a?b=c"
    for uri, error, words in (
        ("half:x", errors.ArgumentTypeError, "only one of"),
        ("nothing:x", errors.ArgumentTypeError, "int"),
        ("instance:x", errors.ArgumentError, "--provider"),
    ):
        with pytest.raises(error, match=words):
            from_uri(uri)


def test_nobody_takes_the_place_of_a_scheme_of_ours(installed: Path, key_file: Path) -> None:
    name = str(key_file).replace("%", "%25")
    with from_uri(f"file:{name}") as key:  # type: ignore[union-attr]
        assert isinstance(key, Key)


# ---- limits ----


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    pytest.importorskip("hvac", reason="needs hvac")
    (tmp_path / "token").write_text("t")
    return f"vault:transit/k?addr=https://127.0.0.1:1&token-source=file:{tmp_path / 'token'}"


def test_limits_in_a_uri(vault: str) -> None:
    for more, max_age, deadline in (
        ("&max-age=3600", 3600, 30),
        ("&deadline=0.5", None, 0.5),
        ("&deadline=5&max%2Dage=60.25", 60.25, 5),
    ):
        held = from_uri(vault + more)
        assert isinstance(held, Held) and (held.max_age, held.deadline) == (max_age, deadline)
        assert held.name == from_uri(vault).name
        held.close()
    assert not isinstance(from_uri(vault), Held)


@pytest.mark.parametrize(
    "more",
    ["max-age=", "max-age=0", "max-age", "max-age=-1", "max-age=nan", "max-age=1e3", "deadline=x",
     "max-age=9999999999", "max-age=1&max-age=2", "max_age=5"],
)  # fmt: skip
def test_limits_that_are_none(vault: str, more: str) -> None:
    with pytest.raises(errors.ArgumentError, match=r"max|deadline"):
        from_uri(f"{vault}&{more}")


def test_keys_of_this_machine_take_no_limits(key_file: Path) -> None:
    odd = key_file.with_name("k?max-age=5")  # a name like another
    key_file.rename(odd)
    assert isinstance(from_uri(f"file:{odd}"), Key)
