# SPDX-License-Identifier: Apache-2.0
"""The pages of the command line, made of its parsers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from site_markdown import escaped

__all__ = ["options_of", "page_of"]


def page_of(parser: argparse.ArgumentParser, summary: str) -> str:
    """The page of a command, in Markdown."""
    return "\n".join(_lines(parser, summary, 1)) + "\n"


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a command takes, apart from its actions and --help."""
    return [
        action
        for action in parser._actions
        if not isinstance(action, (argparse._SubParsersAction, argparse._HelpAction))
        and action.help is not argparse.SUPPRESS
    ]


def _actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _usage(parser: argparse.ArgumentParser) -> str:
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS="88", NO_COLOR="1")
    try:
        return parser.format_usage().removeprefix("usage: ").strip()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _call(action: argparse.Action) -> str:
    """How an argument is written: `-n N`, `--key URI`, or the name of what has no option."""
    formatter = argparse.HelpFormatter("")
    if not action.option_strings:
        return f"`{formatter._metavar_formatter(action, action.dest)(1)[0]}`"
    value = ""
    if action.nargs != 0:
        default = action.dest.upper()
        value = " " + formatter._format_args(action, default)
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    if action.required and action.option_strings:
        text += " (required)"
    return escaped(text)


def _lines(parser: argparse.ArgumentParser, summary: str, depth: int) -> Iterator[str]:
    yield f"{'#' * depth} {parser.prog}"
    yield ""
    description = parser.description or f"{summary[:1].upper()}{summary[1:]}."
    yield escaped(description)
    yield ""
    yield "```text"
    yield _usage(parser)
    yield "```"
    yield ""
    options = options_of(parser)
    if options:
        yield "| argument | meaning |"
        yield "| --- | --- |"
        for action in options:
            yield f"| {_call(action)} | {_meaning(parser, action)} |"
        yield ""
    if parser.epilog:
        yield escaped(parser.epilog)
        yield ""
    for _, action_parser in _actions(parser):
        yield from _lines(action_parser, action_parser.description or "", depth + 1)
