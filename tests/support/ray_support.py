# SPDX-License-Identifier: Apache-2.0
"""Small Ray clusters on this machine, and what lies in their object stores and spill folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from support import child_environment

#: Before Ray starts: no statistics sent home, no tokens in the home directory, quiet workers.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
os.environ.update(SETTINGS)

MIB = 1 << 20
STORE = 256 * MIB
SAMPLE = 48


class Nodes:
    """A cluster of this machine: its driver is this process, connected to the first node."""

    def __init__(self, cluster: Any, nodes: list[Any], spill: Path) -> None:
        self.cluster, self.nodes, self.spill = cluster, nodes, spill

    def add(self, **settings: Any) -> Any:
        return self.cluster.add_node(object_store_memory=STORE, num_cpus=1, **settings)


@contextmanager
def nodes(
    *, key_file: Path, count: int = 2, cpus: int = 1, runtime_env: dict[str, Any] | None = None
) -> Iterator[Nodes]:
    """A cluster whose processes find their key in `key_file`. Node n has the resource "node<n>"."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="pr", dir="/tmp")  # short: sockets lie in it
    spill = Path(folder) / "spill"
    spill.mkdir()
    before = dict(os.environ)
    os.environ.update(child_environment(PYCCMEM_KEY_FILE=str(key_file), PYCCMEM_KEY=None))
    cluster = Cluster()
    try:
        made = [
            cluster.add_node(
                num_cpus=cpus,
                object_store_memory=STORE,
                resources={f"node{at}": 100},
                include_dashboard=False,
                **({"temp_dir": folder, "object_spilling_directory": str(spill)} if not at else {}),
            )
            for at in range(count)
        ]
        ray.init(cluster.address, runtime_env=runtime_env, log_to_driver=False)
        yield Nodes(cluster, made, spill)
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def samples(array: np.ndarray[Any, Any], count: int = 24) -> list[bytes]:
    """Parts of an array's bytes, from all over it."""
    data = array.tobytes()
    step = (len(data) - SAMPLE) // count
    return [data[at * step : at * step + SAMPLE] for at in range(count)]


def _stores() -> Iterator[tuple[int, int]]:
    """Where this process has mapped object stores: the whole of them, other processes' objects
    too."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, name = line.split(maxsplit=5) if line.count(" ") > 4 else (line, "")
        if "/plasma" in name:
            begin, end = (int(number, 16) for number in place.split("-"))
            yield begin, end


def found_in_stores(wanted: Sequence[bytes]) -> tuple[int, int]:
    """How many of the samples lie in the object stores that this process has mapped, and how many
    bytes of these hold anything."""
    seen: set[bytes] = set()
    looked = 0
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for begin, end in _stores():
            before = b""
            for at in range(begin, end, MIB):
                memory.seek(at)
                piece = memory.read(min(MIB, end - at))
                if piece.count(0) != len(piece):
                    looked += len(piece)
                    window = before + piece
                    seen.update(sample for sample in wanted if sample in window)
                before = piece[-SAMPLE:]
    return len(seen), looked


def found_in_files(folder: Path, wanted: Sequence[bytes]) -> tuple[int, int]:
    """The same for the files of a folder."""
    seen: set[bytes] = set()
    looked = 0
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            looked += len(data)
            seen.update(sample for sample in wanted if sample in data)
    return len(seen), looked
