# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo_torch.child DESCRIPTOR`: holds the model, by the protocol of
demo/serving.py."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

from ..demo.serving import embed
from ..keys import Key
from .job import BATCH, IN_PLACE, Job


def load(job: Job) -> tuple[Any, float]:
    """Returns the function that embeds passages, and the seconds that loading took, without
    importing torch and the like."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    import pyccmem.torch
    import pyccmem.transformers

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(job.threads)
    begin = time.perf_counter()
    # The same call loads a plain or a sealed model; PYCCMEM_KEY_FILE names the key.
    model = SentenceTransformer(job.directory, device="cpu", local_files_only=True)
    model.max_seq_length = job.most_tokens
    if job.way == IN_PLACE:
        with Key.generate() as key:
            pyccmem.torch.encrypt_module(model, key=key)
        gc.collect()
    seconds = time.perf_counter() - begin

    def encode(passages: Any) -> Any:
        return model.encode(list(passages), batch_size=BATCH, show_progress_bar=False)

    return encode, seconds


if __name__ == "__main__":
    sys.exit(embed(load))
