# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo_chat.child DESCRIPTOR`: the process that talks.

The first message is a Job, answered by the seconds that making the model took, or by text that says
why there is none. Each later message is a request of job.py. TALK is answered by
a Step for each token and a Talk, REHEARSE by Rows of the plain and then of the encrypted way, the
others by the seconds that they took.
"""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection

from ..demo import serving
from .job import FORGET, OPEN, QUIET, REHEARSE, SHUT, TALK, Job
from .model import Chat


def serve() -> int:
    """Serves the descriptor. Returns the exit status."""

    def make(job: Job) -> tuple[Chat, Job]:
        return Chat(job), job

    def work(made: tuple[Chat, Job], channel: Connection) -> None:
        while True:
            _answer(*made, channel)

    return serving.serve(serving.timed(make), work)


def _answer(chat: Chat, job: Job, channel: Connection) -> None:
    wish = channel.recv()
    begin = time.perf_counter()
    if wish == TALK:
        channel.send(chat.talk(channel.send))
    elif wish == QUIET:
        talk = chat.talk()
        chat.forget()
        channel.send(talk)
    elif wish == REHEARSE:
        channel.send(chat.rehearse(job.rows))
        chat.encrypt()
        channel.send(chat.rehearse(job.rows))
    else:
        {OPEN: chat.open, SHUT: chat.shut, FORGET: chat.forget}[wish]()
        channel.send(time.perf_counter() - begin)


if __name__ == "__main__":
    sys.exit(serve())
