# SPDX-License-Identifier: Apache-2.0
"""`pyccmem bench`: measures every claim as a ratio to what the machine can do.

rounds     medians of paired ratios: the method, and what one measured figure is
common     sizes by cipher, a number of threads, the check of a result
algorithms what a message is to each suite, and what stands in for it at a peer
peers      the same work done by OpenSSL, libgcrypt, libaegis and `cryptography`
pages      claim 1: pages in L2, against the AES unit's ceiling and other libraries
bulk       claim 2: 256 MiB read and written against one memcpy, opened into scratch against a read
threads    claim 3: two threads against one
random64   claim 4: 64 bytes at a random place, in cache and from DRAM
build      claim 5: the memory that building a buffer takes
rows       claim 6: rows of 1536 bytes at random places, against numpy's take
linear     claim 7: products with an encrypted matrix, against numpy's with the plain one
torch_models  claim 8: models in PyTorch, against the same models in plain torch
mapping    claim 9: mappings, against read_into, a bare userfaultfd handler and plain arrays
gemm       claim 12: many rows and other shapes, against numpy's and torch's
vectors    searches of encrypted vectors, against faiss, usearch and numpy with plain ones
baseline   compares with a recorded run
report     the table and the JSON document; plot: the picture
command    the options of `pyccmem bench` and the run itself
"""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
