# SPDX-License-Identifier: Apache-2.0
"""Products with encrypted matrices, of which no more than a tile lies in memory in the clear.

`native` opens and multiplies a few pages at a time. `tiles` has a framework's own BLAS multiply
one tile after another, and `blas` overwrites what that keeps. `arrays` is both for NumPy, `linear`
the public functions with their checks.
"""
