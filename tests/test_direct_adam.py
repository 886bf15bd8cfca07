"""``DirectAdam``: torch's fused Adam without torch's compiler."""

import subprocess
import sys

import torch
from torch.optim import Adam

from momentum_gs.train.optim import DirectAdam

STEPS = """
import sys
import torch
from momentum_gs.train.optim import DirectAdam

row = torch.nn.Parameter(torch.ones(3))
optimizer = DirectAdam([{"params": [row], "name": "row"}])
row.square().sum().backward()
optimizer.step()
optimizer.zero_grad()
assert row.grad is None and (row < 1).all()
sys.exit("torch._dynamo" in sys.modules)
"""


def test_steps_have_the_bits_of_fused_adam() -> None:
    made = []
    for kind in (lambda groups: Adam(groups, eps=1e-15, fused=True), lambda groups: DirectAdam(groups, eps=1e-15)):
        generator = torch.Generator().manual_seed(0)
        rows = [torch.nn.Parameter(torch.randn(size, 3, generator=generator)) for size in (7, 1, 4)]
        optimizer = kind([{"params": rows[:2], "lr": 0.1}, {"params": rows[2:], "lr": 0.01}])
        for step in range(5):
            for place, row in enumerate(rows):
                if (step + place) % 3:  # Some rows have no gradient at some steps.
                    row.grad = torch.randn(row.shape, generator=generator)
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
            optimizer.zero_grad()
        made.append((rows, [optimizer.state[row] for row in rows]))
    for one, other in zip(*(rows for rows, _ in made), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*(states for _, states in made), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_compiler_is_not_imported() -> None:
    subprocess.run([sys.executable, "-c", STEPS], check=True)
