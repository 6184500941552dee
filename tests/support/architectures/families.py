# SPDX-License-Identifier: Apache-2.0
"""The families that transformers has, and which of its classes is tried for each."""

from __future__ import annotations

from typing import Any, NamedTuple

#: Tables of transformers' auto classes; the first that has a family gives the class.
TABLES = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_CTC_MAPPING_NAMES",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES",
    "MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING_NAMES",
    "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "MODEL_FOR_BACKBONE_MAPPING_NAMES",
    "MODEL_FOR_MASK_GENERATION_MAPPING_NAMES",
    "MODEL_FOR_KEYPOINT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_KEYPOINT_MATCHING_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TO_IMAGE_MAPPING_NAMES",
)


class Family(NamedTuple):
    """A model type of transformers, and the names of classes that take its configuration."""

    name: str
    class_names: tuple[str, ...]

    @property
    def config_class(self) -> Any:
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[self.name]

    def is_own_name(self) -> bool:
        """Whether its configuration calls itself so."""
        return bool(self.config_class.model_type == self.name)

    def classes(self) -> list[Any]:
        import transformers

        found = [getattr(transformers, name, None) for name in self.class_names]
        return [one for one in found if one is not None]


def families() -> list[Family]:
    """All families with a class, by name. Of several names of the same classes only one is there,
    the one by which their configuration calls itself."""
    from transformers.models.auto import configuration_auto, modeling_auto

    found: dict[tuple[str, ...], Family] = {}
    for name in sorted(configuration_auto.CONFIG_MAPPING_NAMES):
        names: dict[str, None] = {}
        for table in TABLES:
            value = getattr(modeling_auto, table).get(name, ())
            names.update(dict.fromkeys((value,) if isinstance(value, str) else value))
        family = Family(name, tuple(names))
        if names and (family.class_names not in found or family.is_own_name()):
            found[family.class_names] = family
    return sorted(found.values())
