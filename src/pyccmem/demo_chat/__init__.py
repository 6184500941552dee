# SPDX-License-Identifier: Apache-2.0
"""`pyccmem demo-chat`: a chat whose memory another process searches while it runs.

A Llama with random weights talks in processes of its own: plain, and with weights and key-value
cache encrypted. What is looked for are rows of the keys and values of that very conversation, which
a further process has computed beforehand in the same way.

job        what a child is to be, and what it answers
model      the model and the rows of its cache, plain and encrypted
child      the process that talks
worker     that process, seen from the parent
proof      samples of the rows, and what a search finds of them
trial      both conversations, searched and timed
report     tables for people, JSON for programs
command    the options of `pyccmem demo-chat` and the run itself
"""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
