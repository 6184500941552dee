# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo_chat.child DESCRIPTOR`: the process that talks.

The first message is a Job, answered by the seconds that making the model took, or by text that says
why there is none. Each later message is a request of job.py. TALK is answered by
a Step for each token and a Talk, REHEARSE by Rows of the plain and then of the encrypted way, the
others by the seconds that they took.
"""

from __future__ import annotations

import signal
import sys
import time
from multiprocessing.connection import Connection

from .. import errors
from .job import FORGET, OPEN, QUIET, REHEARSE, SHUT, TALK, Job
from .model import Chat


def serve() -> int:
    """Serves the connection until its other end is closed. Returns the exit status."""
    # Ctrl-C reaches the whole group of processes; the parent ends this one when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: Connection = Connection(int(sys.argv[1]))
    try:
        job = channel.recv()
        begin = time.perf_counter()
        try:
            chat = Chat(job)
        except (errors.PyccmemError, ImportError, OSError, MemoryError) as error:
            channel.send(str(error))
            return 1
        channel.send(time.perf_counter() - begin)
        while True:
            _answer(chat, job, channel)
    except (EOFError, BrokenPipeError):  # the parent has closed its end
        return 0


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
