# SPDX-License-Identifier: Apache-2.0
"""Ray Data: batch jobs over sealed files.

Items of a dataset name rows of a file. The task that needs them opens them, and seals what it makes
of them. So neither is in the clear in the object store, through which items go from task to task,
nor where Ray spills them.

    rows = pyccmem.ray.data.read_sealed("texts.sealed", rows=4096)
    vectors = pyccmem.ray.data.map_rows(rows, function)   # function({"x": array, ...}) -> anything
    for start, result in pyccmem.ray.data.results(vectors): ...
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from .. import errors
from .models import SealedModel
from .sealed import Sealed, seal

try:
    import ray.data
except ImportError as error:
    raise errors.MissingPackageError(
        f"pyccmem.ray.data needs Ray Data ({error}); pip install 'ray[data]'."
    ) from None

__all__ = ["map_rows", "read_sealed", "results"]

#: The tensors of the last file that this process has opened, and which one that is.
_opened: tuple[SealedModel, dict[str, Any]] | None = None


def _tensors(model: SealedModel) -> dict[str, Any]:
    global _opened
    if _opened is None or _opened[0] != model:
        _opened = model, model.tensors()
    return _opened[1]


def read_sealed(
    path: str, *, columns: Sequence[str] | None = None, rows: int = 1024, expect: Any = None
) -> ray.data.Dataset:
    """Returns a dataset over a sealed file whose tensors have as many rows each: an item for every
    `rows` rows, which says where they are. `columns` are the tensors that are wanted, all by
    default; `expect` is the file's pin. Opens the file, and none of its rows.

    Raises ArgumentError for tensors of different numbers of rows, FileRequestError for one that is
    not there, and what SealedModel.tensors() raises."""
    model = SealedModel(path, expect)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise errors.ArgumentError(f"rows is {rows!r}; it must be a whole number from 1.")
    tensors = model.tensors()
    wanted = list(tensors) if columns is None else list(columns)
    missing = [name for name in wanted if name not in tensors]
    if missing or not wanted:
        raise errors.FileRequestError(
            f"{path!r} has no tensors {', '.join(map(ascii, missing)) or 'at all'}; it has "
            f"{', '.join(map(ascii, tensors))}."
        )
    lengths = {name: tensors[name].shape[0] if tensors[name].ndim else 0 for name in wanted}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise errors.ArgumentError(
            f"The columns have {lengths} rows; name with columns= those of one length, from 1."
        )
    count = lengths[wanted[0]]
    items = [
        {"path": model.path, "expect": expect or "", "columns": wanted, "start": start}
        | {"stop": min(start + rows, count)}
        for start in range(0, count, rows)
    ]
    return ray.data.from_items(items)


def map_rows(
    dataset: ray.data.Dataset, function: Callable[[dict[str, Any]], Any], **options: Any
) -> ray.data.Dataset:
    """Calls `function` for each item of read_sealed(), in a task, with its rows by column: plain
    arrays, in memory that is wiped when they go. What it returns is sealed with the process's key
    before it leaves the task. `options` are those of Dataset.map(): num_cpus, concurrency, ...
    Raises ArgumentTypeError for no function."""
    if not callable(function):
        raise errors.ArgumentTypeError(
            f"function must take a dict of arrays, not be a {type(function).__name__}."
        )
    return dataset.map(partial(_mapped, function), **options)


def _mapped(function: Callable[[dict[str, Any]], Any], item: dict[str, Any]) -> dict[str, Any]:
    start, stop = int(item["start"]), int(item["stop"])
    tensors = _tensors(SealedModel(str(item["path"]), item["expect"] or None))
    result = function({name: tensors[name][start:stop] for name in item["columns"]})
    made = result if isinstance(result, Sealed) else seal(result)
    return {"start": start, "stop": stop, "sealed": pickle.dumps(made, protocol=5)}


def results(dataset: ray.data.Dataset) -> Iterator[tuple[int, Any]]:
    """Yields the first row and what the function returned for it, of each item of map_rows(), as
    they come. Arrays lie in memory that is wiped when they go. Raises InvalidKeyError in a process
    without the key, IntegrityError, and what the tasks raise."""
    for item in dataset.iter_rows():
        yield int(item["start"]), pickle.loads(item["sealed"])
