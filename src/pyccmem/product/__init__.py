# SPDX-License-Identifier: Apache-2.0
"""Products with encrypted matrices. Only a tile of the matrix lies in memory in the clear at a
time.

`native` opens and multiplies a few pages at a time. `tiles` lets a framework's own BLAS multiply
one tile after another, and `blas` overwrites what the BLAS keeps. `arrays` uses both for NumPy;
`linear` has the public functions with their checks.
"""
