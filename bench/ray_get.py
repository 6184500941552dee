# SPDX-License-Identifier: Apache-2.0
"""How long Ray's put() and get() of a large encrypted tensor take, beside a plain array.

Usage: build/ray/bin/python bench/ray_get.py [--size 1024] [--rounds 15] [--json]

One process, its object store and no worker: what is timed is what every process pays. get() maps in
either case. A plain array is then there; of an encrypted tensor the table of its pages has been
checked, and each page is opened when it is read. So three things are timed, for pages of 4 KiB and
of 64 KiB: get() alone; get(), and all of it copied into an array that is there already; get(), and
a product with one row, which copies nothing. Ratios are plain by encrypted: 1 is parity, more is
better. Subject and reference take turns in each round. Every result is checked first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import ray

import pyccmem
import pyccmem.ray
from pyccmem import EncryptedTensor, Key
from pyccmem.bench.rounds import Summary, interleave

MIB = 1 << 20
COLUMNS = 4096
PAGES = (4096, 65536)
PLAIN = "plain"


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    def once() -> float:
        begin = perf_counter()
        work()
        return perf_counter() - begin

    return once


def series(size: int) -> dict[str, dict[str, Callable[[], float]]]:
    """What is timed, by what is done and by what it is done with."""
    rows = size * MIB // (4 * COLUMNS)
    plain = np.random.default_rng(0).standard_normal((rows, COLUMNS), dtype=np.float32)
    x = np.random.default_rng(1).standard_normal((1, COLUMNS), dtype=np.float32)
    out = np.empty_like(plain)
    key = Key.generate()
    pyccmem.ray.use_key(key)
    kept = {PLAIN: ray.put(plain)}
    with EncryptedTensor.from_numpy(plain, key=key) as tensor:
        for page_size in PAGES:
            kept[f"pages of {page_size}"] = pyccmem.ray.put(tensor, page_size=page_size)
    wanted = plain @ x[0]

    def copied(name: str) -> None:
        found = ray.get(kept[name])
        if name == PLAIN:
            np.copyto(out, found)
        else:
            found.buffer.read_into(out)

    def multiplied(name: str) -> Any:
        found = ray.get(kept[name])
        return x @ found.T if name == PLAIN else pyccmem.linear(x, found)

    for name in kept:
        out.fill(0)
        copied(name)
        if not np.array_equal(out, plain):
            raise SystemExit(f"{name}: a wrong result")
        if not np.allclose(multiplied(name)[0], wanted, atol=1e-2):
            raise SystemExit(f"{name}: a wrong product")
    works: dict[str, Callable[[str], Any]] = {
        "get": lambda name: ray.get(kept[name]),
        "get and copy": copied,
        "get and multiply": multiplied,
    }
    return {
        what: {name: timed(lambda work=work, name=name: work(name)) for name in kept}
        for what, work in works.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=1024, metavar="MIB", help="of the tensor (1024)"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    store = 4 * arguments.size * MIB + 256 * MIB
    ray.init(
        "local",
        num_cpus=1,
        object_store_memory=store,
        include_dashboard=False,
        log_to_driver=False,
    )
    figures: dict[str, Any] = {}
    try:
        for what, subjects in series(arguments.size).items():
            samples = interleave(subjects, arguments.rounds, tries=1)
            for name, taken in samples.items():
                ratio = Summary.of(samples[PLAIN] / taken)
                figures[f"{what}, {name}"] = {
                    "seconds": float(np.median(taken)),
                    "ratio": [ratio.low, ratio.median, ratio.high],
                }
    finally:
        ray.shutdown()
    if arguments.json:
        print(json.dumps({"size_mib": arguments.size, "figures": figures}, indent=2))
        return 0
    for name, figure in figures.items():
        low, median, high = figure["ratio"]
        print(
            f"{name:34} {figure['seconds'] * 1e3:10.2f} ms  {median:6.3f} ({low:.3f} to {high:.3f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
