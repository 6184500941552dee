# SPDX-License-Identifier: Apache-2.0
"""Attacks the demo server and its unprotected twin: before a request, while it is served, after
it, and after model and key were forgotten."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .. import errors
from . import words
from .job import PLAIN, PROTECTED, Job, Rehearsal, Sizes
from .look import READ, REFUSED, UNTRIED, Look
from .target import Rehearser, Request, Target
from .wanted import wanted
from .ways.changing import Change, changes
from .ways.reading import Memory, halted
from .ways.way import DENIED, Subject, Way

__all__ = ["AFTER", "BEFORE", "DURING", "ERASED", "MOMENTS", "SERIES", "Plan", "Result", "attack"]

Say = Callable[[str], None]

BEFORE, DURING, AFTER, ERASED = "before", "during", "after", "erased"
MOMENTS = (BEFORE, DURING, AFTER, ERASED)
#: The moment of a look of the series over time, whatever the server did then.
SERIES = "at work"


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    sizes: Sizes
    ways: Sequence[Way]
    launcher: Sequence[str]  # the command by which the protected server is started, if any
    requests: int  # in all, of which the last is the one that is watched
    clients: int  # at once
    looks: int  # of the series over time; 0: none
    threads: int
    everywhere: bool = False  # costly ways at all moments


@dataclass(frozen=True)
class Result:
    """What was seen."""

    looks: list[Look]
    series: list[Look]
    changes: list[Change]
    wanted: dict[str, dict[str, int]]  # samples of each kind, by process


def attack(plan: Plan, directory: Path, say: Say) -> Result:
    """Does it all. Raises DemoError if a server does not do what it should."""
    key, marker = os.urandom(32), os.urandom(64)
    key_file = directory / "key"
    with open(key_file, "xb", opener=partial(os.open, mode=0o600)) as file:
        file.write(key)
    text = words.prompt(plan.sizes.prompt, 0)
    earlier = [words.prompt(plan.sizes.prompt, number) for number in range(1, plan.requests)]
    with ExitStack() as stack:

        def job(way: str) -> Job:
            return Job(plan.sizes, way, plan.threads, str(key_file), marker)

        def start(way: str) -> Target:
            launcher = plan.launcher if way == PROTECTED else ()
            target = Target(job(way), str(directory), launcher)
            stack.callback(target.close)
            return target

        names = (PLAIN, PROTECTED)
        ends = any(way.ends for way in plan.ways)
        say(f"starting {4 if ends else 2} servers, and computing what is looked for")
        rehearser = stack.enter_context(Rehearser(job(PLAIN), wait=False))
        targets = {name: start(name) for name in names}
        others = {name: start(name) for name in names} if ends else {}
        rehearser.wait_loaded()
        rehearsals = dict(zip(names, rehearser.rehearsed(text), strict=True))
        rehearser.close()
        weights = {
            name: piece
            for name, piece in rehearsals[PLAIN].pieces.items()
            if name.startswith("weights/")
        }
        for target in (*targets.values(), *others.values()):
            target.wait_ready()
        subjects = {}
        for name, target in targets.items():
            found = wanted(rehearsals[name], weights, key, marker, text, earlier, plan.sizes)
            subjects[name] = Subject(name, target.pid, found, directory, target)
        trial = _Trial(plan, text, earlier, rehearsals, say)
        for name in names:
            trial.through(subjects[name])
        for name, target in others.items():
            trial.ended(replace(subjects[name], pid=target.pid, target=target))
    return Result(
        resolved(trial.looks),
        resolved(trial.series),
        trial.changes,
        {name: subject.wanted.kinds for name, subject in subjects.items()},
    )


class _Trial:
    def __init__(
        self,
        plan: Plan,
        text: str,
        earlier: Sequence[str],
        rehearsals: dict[str, Rehearsal],
        say: Say,
    ) -> None:
        self.plan, self.text, self.earlier, self.rehearsals = plan, text, earlier, rehearsals
        self.say = say
        self.looks: list[Look] = []
        self.series: list[Look] = []
        self.changes: list[Change] = []

    def through(self, subject: Subject) -> None:
        """Attacks a server from its start to its end."""
        target = subject.target
        assert target is not None
        ways = [way for way in self.plan.ways if not way.ends]
        self.try_all(subject, BEFORE, ways)
        if self.earlier:
            self.say(f"{subject.name}: {len(self.earlier)} requests")
            with ThreadPoolExecutor(self.plan.clients) as clients:
                list(clients.map(target.request, self.earlier))
        with self.paused(subject):
            self.try_all(subject, DURING, ways)
        self.try_all(subject, AFTER, ways)
        self.say(f"{subject.name}: changing memory")
        self.changes += changes(target, subject.name)
        if self.plan.looks:
            self.watch(subject, target)
        target.rest()
        target.erase()
        self.try_all(subject, ERASED, ways)
        self.try_all(subject, ERASED, [way for way in self.plan.ways if way.ends])
        target.close()

    def ended(self, subject: Subject) -> None:
        """Attacks another such server while it serves a request, in ways that end it."""
        assert subject.target is not None
        for way in (way for way in self.plan.ways if way.ends):
            request = subject.target.halted_at(self.plan.sizes.pause, self.text)
            self.try_all(subject, DURING, [way])
            request.join()
            break  # it is no more
        subject.target.close()

    def try_all(self, subject: Subject, moment: str, ways: Sequence[Way]) -> None:
        for way in ways:
            if way.costly and not self.plan.everywhere and moment not in (DURING, AFTER):
                continue
            self.say(f"{subject.name}, {moment}: {way.title}")
            self.looks.append(way.look(subject, moment))

    @contextmanager
    def paused(self, subject: Subject) -> Iterator[None]:
        """Halts a request at a token of its answer for the length of a `with` block, then waits for
        its end."""
        target = subject.target
        assert target is not None
        request = target.halted_at(self.plan.sizes.pause, self.text)
        yield
        target.go_on()
        self.check(request, subject.name)
        target.rest()

    def check(self, request: Request, name: str) -> None:
        if request.answer() != self.rehearsals[name].answer:
            raise errors.DemoError(
                f"The {name} server answered something else than the model did when it rehearsed, "
                f"so its memory was searched for what it never had. Is the machine's memory sound?"
            )

    def watch(self, subject: Subject, target: Target) -> None:
        """Looks through /proc/PID/mem at even times of one more request, whatever is done then."""
        way = Memory()
        seconds = self.rehearsals[subject.name].seconds
        step = seconds / self.plan.looks / 2  # the rehearsal may have shared the processor
        halted_for = 0.0
        self.say(f"{subject.name}: {self.plan.looks} looks while it works")
        request = Request(target, self.text)
        began = time.monotonic()
        for _ in range(2 * self.plan.looks):
            time.sleep(step)
            if not request.under_way:
                break
            stopped = time.monotonic()
            with halted(subject.pid):
                look = way.look(subject, SERIES)
            self.series.append(replace(look, at=stopped - began - halted_for))
            halted_for += time.monotonic() - stopped
        self.check(request, subject.name)
        target.rest()
        for moment in (AFTER,):
            at = time.monotonic() - began - halted_for
            self.series.append(replace(way.look(subject, moment), at=at))


def resolved(looks: Sequence[Look], *, closed: bool = True) -> list[Look]:
    """Says of what was denied whether the process itself keeps that way out: its twin did not, and
    it is `closed`."""
    open_to = {
        (look.way, look.moment) for look in looks if look.process == PLAIN and look.status == READ
    }
    ever = {way for way, _ in open_to}

    def settled(look: Look) -> Look:
        if look.status != DENIED:
            return look
        kept_out = closed and look.process != PLAIN and look.way in ever
        return replace(look, status=REFUSED if kept_out else UNTRIED)

    return [settled(look) for look in looks]
