"""``DirectAdam``: torch's Adam in one kernel, without torch's compiler."""

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


def test_steps_are_those_of_adam() -> None:
    made = []
    for kind in (lambda groups: Adam(groups, eps=1e-15), lambda groups: DirectAdam(groups, eps=1e-15)):
        generator = torch.Generator().manual_seed(0)
        rows = [torch.nn.Parameter(torch.randn(size, 3, generator=generator)) for size in (7, 1, 4)]
        optimizer = kind([{"params": rows[:2], "lr": 0.1}, {"params": rows[2:], "lr": 0.01}])
        for step in range(5):
            if step == 2:  # Moments are exchanged, as those of a set of blocks are; their count of steps is theirs.
                optimizer.state[rows[0]] = {name: torch.full_like(m, 9) for name, m in optimizer.state[rows[0]].items()}
            for place, row in enumerate(rows):
                if (step + place) % 3:  # Some rows have no gradient at some steps.
                    row.grad = torch.randn(row.shape, generator=generator)
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
            optimizer.zero_grad()
        made.append((rows, [optimizer.state[row] for row in rows]))
    for one, other in zip(*(rows for rows, _ in made), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)
    for one, other in zip(*(states for _, states in made), strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=2e-6, atol=2e-6)


def test_the_compiler_is_not_imported() -> None:
    subprocess.run([sys.executable, "-c", STEPS], check=True)
