# SPDX-License-Identifier: Apache-2.0
"""A vocabulary of made-up words, one a token: text that lies in no other process."""

from __future__ import annotations

import random
from collections.abc import Iterable

__all__ = ["WORDS", "prompt", "to_ids", "to_text"]

#: Of the vocabulary.
WORDS = 8192

_SYLLABLES = [first + vowel for first in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]
_STEP = 7_919 * 131  # has no divisor in common with the number of words of three syllables


def _word(number: int) -> str:
    count = len(_SYLLABLES)
    place = number * _STEP % count**3
    return "".join(_SYLLABLES[place // count**power % count] for power in range(3))


def to_text(ids: Iterable[int]) -> str:
    """Returns the words of the tokens."""
    return " ".join(map(_word, ids))


def to_ids(text: str) -> list[int]:
    """Returns the tokens of words. Raises KeyError for a word that is none."""
    numbers = {_word(number): number for number in range(WORDS)}
    return [numbers[word] for word in text.split()]


def prompt(tokens: int, seed: int) -> str:
    """Returns a text of so many words, drawn by the seed."""
    drawn = random.Random(f"prompt {seed}")
    return to_text(drawn.randrange(WORDS) for _ in range(tokens))
