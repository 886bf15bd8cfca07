"""Random numbers that depend on a key, not on earlier draws.

A generator is made from (seed, purpose, block, step, ...) whenever it is needed. So resuming needs no stored state, and
neither the number of ranks nor the order of the blocks changes what is drawn. ``keyed_uniform`` goes one step further:
the number for an index depends neither on the other indices nor on the device.
"""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood 2014): the odd increment next to 2^64 / golden ratio, the multipliers and the shifts
# of its finalizer, as signed 64-bit integers. Products wrap modulo 2^64 on every device.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))
_FLOAT_BITS = 24
"""Bits of a float32's significand: every multiple of 2^-24 below 1 is exact."""


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on the whole key and on nothing else."""
    return torch.Generator().manual_seed(_hash(key) >> 1)


def keyed_uniform(index: Int[Tensor, "n"], *key: int | str) -> Float[Tensor, "n"]:
    """Uniform numbers in [0, 1), float32: entry i depends on the key and on ``index[i]`` alone.

    The same bits on every device, without a transfer. Equal indices get equal numbers.
    """
    start = _hash(key)
    bits = index * _INCREMENT + (start - 2**64 if start >= 2**63 else start)
    for shift, multiplier in _ROUNDS:
        bits = (bits ^ _shift_right(bits, shift)) * multiplier
    return _shift_right(bits, 64 - _FLOAT_BITS).float() * 2.0**-_FLOAT_BITS


def _hash(key: tuple[int | str, ...]) -> int:
    """64 bits; hashed, so that similar keys give unrelated streams (a sum of seeds would not)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def _shift_right(bits: Int[Tensor, "n"], by: int) -> Int[Tensor, "n"]:
    """Logical shift, which fills with zeros; torch's own shift repeats the sign bit."""
    return (bits >> by) & (2 ** (64 - by) - 1)
