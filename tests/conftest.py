"""What holds for all tests: property tests draw the same examples every time."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# derandomize: a failure on one machine is a failure on all. No deadline: a busy machine is slow, not wrong.
settings.register_profile("momentum-gs", derandomize=True, deadline=None)
settings.load_profile("momentum-gs")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As torchrun gives each of several processes; matrix products may round differently with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
