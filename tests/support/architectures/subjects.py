# SPDX-License-Identifier: Apache-2.0
"""The families of transformers as subjects of trials."""

from __future__ import annotations

from .families import families
from .trial import Subject, subject_of


def transformers_subjects() -> list[Subject]:
    """One for each family of the version that is installed."""
    import transformers

    import pyccmem.transformers  # noqa: F401  (what children need is imported once)

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return [subject_of(family) for family in families()]
