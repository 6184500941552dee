# SPDX-License-Identifier: Apache-2.0
"""`pyccmem keys`: lists the schemes of keys' URIs, tests what a URI names, and wraps and unwraps
key files by it."""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ... import errors
from ...console.numbers import whole
from ...key_services import KeyProvider, from_uri, schemes
from ...key_services.context import OWN, given, words
from ...key_services.registry import ENTRY_POINTS
from ...keys import Key
from ...safetensors._format import KeyEntry
from ...safetensors.providers import check_key, opened, wrap
from ..keys import add_context_option, close, context_of, with_warnings
from ..output import safe, show_json, show_rows, show_table
from ..wrapped_keys import read_wrapped, write_wrapped
from .keygen import write_key_file
from .rotate import add_rotation_options, rotated

__all__ = ["add_arguments", "run"]

_PURPOSE = f"{OWN}purpose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `pyccmem keys`, and their options."""
    parser.description = "Works with the keys and the key services that URIs name."
    parser.epilog = (
        "Exit status: 0 done; 2 wrong usage or another error: no such key, the service is away, it "
        "refuses."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, add, _) in _ACTIONS.items():
        own = actions.add_parser(name, help=summary, description=summary)
        add(own)
        own.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Carries out an action. Raises what from_uri() raises, and what the provider raises."""
    return _ACTIONS[arguments.action][2](arguments)


def _add_uri(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="a key's URI, such as file:PATH")


@contextmanager
def _key(uri: str) -> Iterator[Key | KeyProvider]:
    key = with_warnings(lambda: from_uri(uri))
    try:
        check_key(key)
        yield key
    finally:
        close(key)


def _described(key: Key | KeyProvider) -> dict[str, str]:
    """Returns what may be told of a key: of a Key its id and where it lies, of a provider its
    name."""
    if isinstance(key, Key):
        return {"provider": "key", "key_id": key.id, "memory": key.level}
    return {"provider": key.name}


# ---- list ----


def _list(arguments: argparse.Namespace) -> int:
    offered = importlib.metadata.entry_points(group=ENTRY_POINTS)
    packages = {
        entry.name: entry.dist.name if entry.dist is not None else "?"
        for entry in offered
        if entry.name not in schemes(own=True)
    }
    found = [
        {"scheme": name, "from": "pyccmem" if name in schemes(own=True) else packages[name]}
        for name in schemes()
    ]
    if arguments.json:
        show_json(found)
    else:
        rows = [(safe(entry["scheme"]), safe(entry["from"])) for entry in found]
        show_table(("scheme", "from"), rows)
    return 0


# ---- test ----


def _test(arguments: argparse.Namespace) -> int:
    """Wraps a random key and unwraps it again; then with another context, which must be refused."""
    context = {_PURPOSE: "test", **given(context_of(arguments.context))}
    seconds = {}
    with _key(arguments.uri) as key, Key.generate() as data_key:
        begin = time.perf_counter()
        provider, wrapped, bound = wrap(key, data_key, context)
        seconds["wrap"] = time.perf_counter() - begin
        entry = KeyEntry(provider, wrapped, bound, context)
        taken = sorted(_unwrapping(key, entry, data_key) for _ in range(arguments.count))
        seconds["unwrap"] = taken[len(taken) // 2]
        if len(taken) > 1:
            seconds["slowest unwrap"] = taken[-1]
        _refuses(key, KeyEntry(provider, wrapped, bound, {**context, _PURPOSE: "tesu"}), data_key)
        told = _described(key)
    told["key_id"] = wrapped.key_id
    if arguments.json:
        show_json({**told, "works": True, "bound": True, "seconds": seconds})
        return 0
    rows = [(name.replace("_", " "), safe(value)) for name, value in told.items()]
    rows += [(name, f"{1000 * value:.3g} ms") for name, value in seconds.items()]
    show_rows(safe(arguments.uri), [*rows, ("another context", "refused")])
    return 0


def _unwrapping(key: Key | KeyProvider, entry: KeyEntry, data_key: Key) -> float:
    """Returns the seconds that unwrapping took. Raises KeyServiceError for another key."""
    begin = time.perf_counter()
    with opened(key, entry) as again:
        seconds = time.perf_counter() - begin
        if again.id != data_key.id:
            raise errors.KeyServiceError(
                "The service gave back another key than it was given; what is sealed by it could "
                "not be opened."
            )
    return seconds


def _refuses(key: Key | KeyProvider, entry: KeyEntry, data_key: Key) -> None:
    """Raises KeyServiceError unless the entry, whose context was changed, is refused."""
    try:
        with opened(key, entry) as again:
            same = again.id == data_key.id
    except errors.KeyUnavailableError:
        raise
    except Exception:  # a provider may raise anything
        return
    what = "the same key" if same else "a key"
    raise errors.KeyServiceError(
        f"The service gives {what} for another context: it does not bind keys to what they are "
        f"for, so a key of one file could be had for another."
    )


# ---- wrap, unwrap ----


def _add_wrap(parser: argparse.ArgumentParser) -> None:
    _add_uri(parser)
    parser.add_argument("key_file", metavar="KEY-FILE", help="the key file to wrap")
    parser.add_argument("wrapped", metavar="WRAPPED", help="the file to make, which is no secret")
    add_context_option(parser, "--context", "a text that the key is bound to")
    parser.add_argument("--force", action="store_true", help="replace WRAPPED")


def _wrap(arguments: argparse.Namespace) -> int:
    context = {_PURPOSE: "key-file", **given(context_of(arguments.context))}
    with (
        _key(arguments.uri) as key,
        with_warnings(lambda: Key.from_file(arguments.key_file)) as data_key,
    ):
        provider, wrapped, bound = wrap(key, data_key, context)
        entry = KeyEntry(provider, wrapped, bound, context)
        write_wrapped(arguments.wrapped, entry, force=arguments.force)
        told = {"file": arguments.wrapped, "key_id": data_key.id, "wrapped_by": wrapped.key_id}
    _tell(arguments, told)
    return 0


def _add_unwrap(parser: argparse.ArgumentParser) -> None:
    _add_uri(parser)
    parser.add_argument("wrapped", metavar="WRAPPED", help="what `pyccmem keys wrap` has made")
    parser.add_argument("key_file", metavar="KEY-FILE", help="the key file to make, of mode 0600")
    add_context_option(parser, "--context", "a text that the key must be bound to")
    parser.add_argument("--force", action="store_true", help="replace KEY-FILE")


def _unwrap(arguments: argparse.Namespace) -> int:
    entry = read_wrapped(arguments.wrapped)
    wanted = {_PURPOSE: "key-file", **given(context_of(arguments.context))}
    found = entry.context or {}
    if not wanted.items() <= found.items():
        raise errors.ContextError(
            f"The key in {arguments.wrapped!a} was wrapped for another context: "
            f"{words(found)}, and {words(wanted)} is needed.",
            wanted=wanted,
            found=found,
        )
    with _key(arguments.uri) as key, opened(key, entry) as data_key:
        write_key_file(arguments.key_file, data_key, force=arguments.force)
        told = {"file": arguments.key_file, "key_id": data_key.id}
    _tell(arguments, told)
    return 0


def _tell(arguments: argparse.Namespace, told: dict[str, str]) -> None:
    if arguments.json:
        show_json(told)
    else:
        print(f"{safe(told['file'])}  key id {told['key_id']}")


def _add_test(parser: argparse.ArgumentParser) -> None:
    _add_uri(parser)
    add_context_option(parser, "--context", "a text of the context to test with")
    parser.add_argument(
        "--count",
        metavar="N",
        type=whole("a count", 1, 1_000_000),
        default=1,
        help="unwrap so often, and show the median and the slowest",
    )


def _add_rotate(parser: argparse.ArgumentParser) -> None:
    _add_uri(parser)
    parser.add_argument("new_uri", metavar="NEW-URI", help="the URI of the new key")
    parser.add_argument("directory", metavar="DIR", help="a directory of sealed files")
    add_rotation_options(parser)


def _rotate(arguments: argparse.Namespace) -> int:
    with _key(arguments.uri) as old, _key(arguments.new_uri) as new:
        return rotated(arguments, old, new)


_Action = tuple[str, Callable[[argparse.ArgumentParser], Any], Callable[[argparse.Namespace], int]]

_ACTIONS: dict[str, _Action] = {
    "list": ("list the schemes of keys' URIs that are known here", lambda _: None, _list),
    "test": ("wrap and unwrap a random key, and show that its context binds", _add_test, _test),
    "wrap": ("wrap a key file by the key or the service that a URI names", _add_wrap, _wrap),
    "unwrap": ("make a key file of what was wrapped", _add_unwrap, _unwrap),
    "rotate": ("give all sealed files of a directory another key at once", _add_rotate, _rotate),
}
