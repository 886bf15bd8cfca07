"""Random numbers by key instead of by history.

A generator is made from (seed, purpose, block, step, ...) whenever it is needed. Nothing has to be stored to resume,
and neither the number of ranks nor the order of the blocks can change what is drawn.
"""

import hashlib

import torch


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on the whole key and on nothing else.

    Keys are hashed, so that neighbouring keys give unrelated streams (a sum of seeds would not).
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=False) >> 1)
