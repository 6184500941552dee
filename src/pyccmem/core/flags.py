# SPDX-License-Identifier: Apache-2.0
"""Flags: what `array.flags` tells, of a tensor."""

from __future__ import annotations

__all__ = ["Flags"]

_NAMES = ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA", "WRITEABLE", "ALIGNED", "WRITEBACKIFCOPY")

#: The other names that NumPy's flags have between brackets.
_SHORT = {
    "C": "c_contiguous", "F": "f_contiguous", "O": "owndata", "W": "writeable", "A": "aligned",
    "X": "writebackifcopy", "CONTIGUOUS": "contiguous", "FORTRAN": "fortran", "B": "behaved",
    "BEHAVED": "behaved", "CA": "carray", "CARRAY": "carray", "FA": "farray", "FARRAY": "farray",
    "FNC": "fnc", "FORC": "forc", **{name: name.lower() for name in _NAMES},
}  # fmt: skip


class Flags:
    """The flags of a tensor: `flags.c_contiguous`, `flags["C"]`, and the others of NumPy's flags.
    They cannot be set.

    `writeable` tells whether the tensor can be written. `owndata` is False: there is no plaintext
    that a pointer could lead to.
    """

    __slots__ = ("_values",)

    def __init__(self, shape: tuple[int, ...], writable: bool) -> None:
        """Takes a tensor's shape, and whether it can be written."""
        line = 0 in shape or sum(n > 1 for n in shape) < 2
        self._values = dict(zip(_NAMES, (True, line, False, writable, True, False), strict=True))

    def __getitem__(self, name: str) -> bool:
        """Returns the flag of this name. Raises KeyError, as NumPy's flags do."""
        found = _SHORT.get(name) if isinstance(name, str) else None
        if found is None:
            raise KeyError("Unknown flag")
        return bool(getattr(self, found))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flags) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "\n".join(f"  {name} : {value}" for name, value in self._values.items())

    @property
    def c_contiguous(self) -> bool:
        """True: the bytes lie in C order."""
        return self._values["C_CONTIGUOUS"]

    @property
    def f_contiguous(self) -> bool:
        """True if they lie in Fortran's order too, as in one dimension."""
        return self._values["F_CONTIGUOUS"]

    @property
    def contiguous(self) -> bool:
        """The same as c_contiguous."""
        return self.c_contiguous

    @property
    def fortran(self) -> bool:
        """The same as f_contiguous."""
        return self.f_contiguous

    @property
    def owndata(self) -> bool:
        """False: the buffer holds the bytes, as ciphertext."""
        return self._values["OWNDATA"]

    @property
    def writeable(self) -> bool:
        """False for a tensor that lies in a sealed file."""
        return self._values["WRITEABLE"]

    @property
    def aligned(self) -> bool:
        """True: what is read lies in aligned memory."""
        return self._values["ALIGNED"]

    @property
    def writebackifcopy(self) -> bool:
        """False."""
        return self._values["WRITEBACKIFCOPY"]

    @property
    def fnc(self) -> bool:
        """True if f_contiguous and not c_contiguous."""
        return self.f_contiguous and not self.c_contiguous

    @property
    def forc(self) -> bool:
        """True if f_contiguous or c_contiguous."""
        return self.f_contiguous or self.c_contiguous

    @property
    def behaved(self) -> bool:
        """True if aligned and writeable."""
        return self.aligned and self.writeable

    @property
    def carray(self) -> bool:
        """True if behaved and c_contiguous."""
        return self.behaved and self.c_contiguous

    @property
    def farray(self) -> bool:
        """True if behaved and fnc."""
        return self.behaved and self.fnc

    @property
    def num(self) -> int:
        """The flags as the bits of NumPy's C interface."""
        bits = (0x0001, 0x0002, 0x0004, 0x0400, 0x0100, 0x2000)
        return sum(bit for bit, on in zip(bits, self._values.values(), strict=True) if on)
