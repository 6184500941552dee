# SPDX-License-Identifier: Apache-2.0
"""`pyccmem demo-torch`: the model of `pyccmem demo` through sentence-transformers, in three ways.

Each way runs in a process of its own: plain; encrypted in place by pyccmem.torch.encrypt_module();
and from a sealed directory by pyccmem.transformers. Measuring, and searching the memory of each,
are as in pyccmem.demo.

job        what a child is to load
child      the process that holds the model
command    the options of `pyccmem demo-torch` and the run itself
"""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
