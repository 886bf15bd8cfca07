"""Keyed uniform numbers: exact, uniform, and independent between neighbouring keys and indices."""

import pytest
import torch

from momentum_gs.core.seeds import _hash, keyed_generator, keyed_uniform

N = 2**18
INDEX = torch.arange(N)


def splitmix64(state: int) -> int:
    """The finalizer of SplitMix64 in exact integers."""
    bits = state % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


def test_the_bits_are_those_of_splitmix64() -> None:
    """In torch products overflow and right shifts keep the sign; integers in Python do neither."""
    # The published first numbers of the generator with the seed 1234567.
    gamma = 0x9E3779B97F4A7C15
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567 + (i + 1) * gamma) for i in range(3)] == published
    index = torch.tensor([0, 1, 2, 12345, 2**31, 2**40 + 7, 2**62])
    for key in ((0,), (7, "growth", 3, 1500, 0), ("a", -1)):
        expected = [(splitmix64(_hash(key) + i * gamma) >> 40) / 2**24 for i in index.tolist()]
        assert keyed_uniform(index, *key).tolist() == expected


def test_a_number_depends_on_key_and_index_alone() -> None:
    whole = keyed_uniform(INDEX, 0, "growth", 2)
    some = torch.randperm(N, generator=keyed_generator("some"))[:1000]
    assert torch.equal(keyed_uniform(some, 0, "growth", 2), whole[some])
    assert not torch.equal(keyed_uniform(INDEX, 0, "growth", 3), whole)
    assert keyed_uniform(INDEX[:0], 0).shape == (0,)


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    assert torch.equal(keyed_uniform(INDEX.cuda(), 5, "x").cpu(), keyed_uniform(INDEX, 5, "x"))


def chi_squared(cell: torch.Tensor, n_cells: int) -> float:
    """Chi-squared of counts that should be equal, in standard deviations from its mean."""
    mean = len(cell) / n_cells
    found = ((torch.bincount(cell, minlength=n_cells) - mean) ** 2 / mean).sum()
    return float((found - (n_cells - 1)) / (2 * (n_cells - 1)) ** 0.5)


# The numbers are fixed, so a bound of 4 standard deviations cannot fail by chance.
@pytest.mark.parametrize("key", [(0, "growth", 0, 500, 0), (0, "growth", 0, 500, 1), (1, "growth", 7, 525, 2)])
def test_uniform_and_neighbours_are_independent(key: tuple[int | str, ...]) -> None:
    numbers = keyed_uniform(INDEX, *key)
    assert numbers.dtype == torch.float32 and numbers.min() >= 0 and numbers.max() < 1
    sixteenth = (numbers * 16).long()
    assert abs(chi_squared((numbers * 1024).long(), 1024)) < 4
    # The next index; the same offset of the next anchor; the lowest of the 24 bits, where weak hashes have patterns.
    for stride in (1, 10):
        assert abs(chi_squared(16 * sixteenth[:-stride:2] + sixteenth[stride::2], 256)) < 4
    assert abs(chi_squared((numbers * 2**24).long() % 256, 256)) < 4
    # Level, step, block and seed of the key, each to its neighbour.
    seed, purpose, block, step, level = key
    for other in (
        (seed, purpose, block, step, level + 1), (seed, purpose, block, step + 25, level),
        (seed, purpose, block + 1, step, level), (seed + 1, purpose, block, step, level),
    ):  # fmt: skip
        theirs = (keyed_uniform(INDEX, *other) * 16).long()
        assert abs(chi_squared(16 * sixteenth + theirs, 256)) < 4
