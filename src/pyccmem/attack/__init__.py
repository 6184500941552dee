# SPDX-License-Identifier: Apache-2.0
"""`pyccmem attack`: tries every way to get at a process's memory that this machine allows.

It attacks a small HTTP server with a model, or a process of one's own, always beside an unprotected
twin that must be found out: where it is not, the run proves nothing and says so.

job, words, model    what a server is to be; its vocabulary; the model and what is looked for of it
server, note         the server's process, and a note in it that is changed from outside
rehearsal            the process that computes beforehand what is looked for
target               these processes, seen from the parent
keys, wanted         what a key becomes in memory; all samples
look, ways           what one way saw at one moment; the ways
scratch              a private directory for dumps
trial, own           the attack on the server, and on a process of one's own
outcome, report      what the looks mean; tables for people, JSON for programs
plot                 a picture of hits over time
command              the options of `pyccmem attack` and the run itself
"""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
