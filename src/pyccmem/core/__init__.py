# SPDX-License-Identifier: Apache-2.0
"""The base of the public classes, products and adapters. No part of it is public.

`store` and `matrix` are what adapters to other frameworks use: a Store says where bytes lie as
ciphertext, a Matrix where a matrix lies in a store.
"""
