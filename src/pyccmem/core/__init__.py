# SPDX-License-Identifier: Apache-2.0
"""What the public classes, products and adapters are built on, and do not show.

`store` and `matrix` are the seam for adapters to other frameworks: where bytes lie as ciphertext,
and where a matrix lies among them.
"""
