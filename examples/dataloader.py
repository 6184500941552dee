# SPDX-License-Identifier: Apache-2.0
"""A DataLoader whose workers read sealed data: patients' records, say, that never lie in the clear
on a disk, and in memory a batch at a time.

    python examples/dataloader.py [fork|spawn]

Each worker opens the sealed file by itself, with the key that it reads from the key file. So it
works by "fork" and by "spawn", and no key goes from process to process. All of them map the same
pages.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import pyccmem
from pyccmem.safetensors import load_file, save_file

ROWS, WIDTH = 4096, 64


class SealedRecords(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Rows of the tensors `x` and `y` of a sealed file, which is opened where they are read."""

    def __init__(self, path: Path, key_file: Path, rows: int) -> None:
        self.path, self.key_file, self.rows = path, key_file, rows
        self.tensors: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch at once: its rows are opened in one call."""
        if self.tensors is None:  # in this worker, for the first time
            with pyccmem.Key.from_file(self.key_file) as key:
                self.tensors = load_file(self.path, key=key)
        rows = np.asarray(indices)
        x, y = self.tensors["x"], self.tensors["y"]
        return torch.from_numpy(x[rows]), torch.from_numpy(y[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tensors": None}  # for "spawn": what is open stays here


def same(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of DataLoader's own, which puts single rows together."""
    return batch


def make(folder: Path) -> tuple[Path, Path]:
    """A sealed file to learn from, and its key."""
    key_file, path = folder / "data.key", folder / "records.safetensors"
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, WIDTH), np.float32)
    y = (x @ rng.standard_normal(WIDTH, np.float32) > 0).astype(np.float32)
    subprocess.run([sys.executable, "-m", "pyccmem", "keygen", str(key_file)], check=True)
    with pyccmem.Key.from_file(key_file) as key:
        save_file({"x": x, "y": y}, path, key=key)
    return path, key_file


def main(method: str) -> float:
    """Learns to tell the two kinds of records apart; the share that it gets right."""
    with tempfile.TemporaryDirectory() as folder:
        data = SealedRecords(*make(Path(folder)), ROWS)
        loader = DataLoader(
            data,
            batch_size=256,
            shuffle=True,
            num_workers=2,
            collate_fn=same,
            multiprocessing_context=method,
            persistent_workers=True,
        )
        torch.manual_seed(0)
        model = torch.nn.Linear(WIDTH, 1)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(4):
            right = 0
            for x, y in loader:
                guess = model(x)[:, 0]
                torch.nn.functional.binary_cross_entropy_with_logits(guess, y).backward()
                optimizer.step()
                optimizer.zero_grad()
                right += int(((guess > 0) == (y > 0)).sum())
                x.zero_()  # the batch was plain, and is not needed any more
        return right / ROWS


if __name__ == "__main__":
    print(f"{main(sys.argv[1] if len(sys.argv) > 1 else 'fork'):.0%} right")
