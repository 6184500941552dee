# SPDX-License-Identifier: Apache-2.0
"""`pyccmem demo`: runs a real model with its weights encrypted in RAM, and shows what that costs.

The model is all-MiniLM-L6-v2, which turns a passage into a vector of 384 numbers; passages of
similar meaning lie close together. It runs in child processes, one for each kind of weights: plain
ones, and EncryptedTensors for each cipher shown. All run the same code.

layers     what the model computes with, among it `linear`, which multiplies by a weight
model      the BERT encoder over a mapping of weights, plain or encrypted
files      where the model's files lie, and the tokenizer
passages   docstrings of the Python standard library, read and never run
worker     a child process that holds the model and does as it is told
retrieval  `--search`: a store of passages, plain and encrypted, in processes of their own
proof      looks for the weights in the memory of the children
measure    times the children in turn
command    the options of `pyccmem demo` and the run itself; report: what it prints
"""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
