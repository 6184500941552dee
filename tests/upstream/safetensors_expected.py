# SPDX-License-Identifier: Apache-2.0
"""Which of safetensors' own tests are left out or changed, and why."""

from __future__ import annotations

__all__ = [
    "EXCLUDED",
    "EXCLUDED_SEALED",
    "HELPERS",
    "OTHER_FRAMEWORKS",
    "OWN_SENTENCES",
    "VERSION",
]

#: The version that these lists are for.
VERSION = "0.8.0"

#: Files that are for frameworks without an adapter of pyccmem.
OTHER_FRAMEWORKS = (
    "test_flax_comparison.py",
    "test_mlx_comparison.py",
    "test_paddle_comparison.py",
    "test_tf_comparison.py",
)

#: Functions about plain tensors' memory that safetensors.torch has for itself, and which its tests
#: import.
HELPERS = (
    "_end_ptr",
    "_find_shared_tensors",
    "_is_complete",
    "_remove_duplicate_names",
    "storage_ptr",
    "storage_size",
)

_HELPER = "tests a function about the memory of plain tensors, of which nothing is pyccmem's"
_PLAIN_BYTES = "compares with the bytes of a plain file; passes in mode `decrypted`"

#: By name, in both modes.
EXCLUDED: dict[str, str] = {
    "test_pt_comparison.py::SliceTestCase::test_cannot_serialize_a_non_contiguous_tensor": (
        "pyccmem writes such a tensor in order, 1 MiB at a time, and loses nothing"
    ),
    "test_pt_model.py::TorchModelTestCase::test_end_ptr": _HELPER,
    "test_pt_model.py::TorchModelTestCase::test_find_shared_non_shared_tensors": _HELPER,
    "test_pt_model.py::TorchModelTestCase::test_find_shared_tensors": _HELPER,
    "test_pt_model.py::TorchModelTestCase::test_is_complete": _HELPER,
    "test_pt_model.py::TorchModelTestCase::test_remove_duplicate_names": _HELPER,
    "test_simple.py::TestCase::test_pt_sf_save_model_overlapping_storage": _HELPER,
}

#: By name, where files stay sealed.
EXCLUDED_SEALED: dict[str, str] = {
    "test_pt_comparison.py::TorchTestCase::test_complex": _PLAIN_BYTES,
    "test_pt_comparison.py::TorchTestCase::test_in_memory": _PLAIN_BYTES,
    "test_pt_comparison.py::TorchTestCase::test_serialization": _PLAIN_BYTES,
    "test_pt_model.py::TorchModelTestCase::test_save": _PLAIN_BYTES,
    "test_simple.py::TestCase::test_serialization": _PLAIN_BYTES,
    "test_simple.py::TestCase::test_serialization_forces_alignment": _PLAIN_BYTES,
    "test_simple.py::TestCase::test_serialization_metadata": _PLAIN_BYTES,
    "test_simple.py::TestCase::test_serialization_no_big_endian": _PLAIN_BYTES,
    "test_simple.py::TestCase::test_serialization_order_invariant": (
        "compares the bytes of two files, which have keys of their own; passes in mode `decrypted`"
    ),
}

#: Tests that compare the sentence of an exception, which is pyccmem's own: only its class counts.
OWN_SENTENCES = frozenset(
    (
        "test_pt_comparison.py::TorchTestCase::test_bogus",
        "test_pt_comparison.py::TorchTestCase::test_meta_tensor",
        "test_pt_comparison.py::TorchTestCase::test_sparse",
        "test_simple.py::ErrorsTestCase::test_file_not_found",
        "test_simple.py::ReadmeTestCase::test_numpy_slice",
    )
)
