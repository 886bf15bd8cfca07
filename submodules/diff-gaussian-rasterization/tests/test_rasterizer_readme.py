"""The example in README.md runs as it stands and draws the image beside it."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_the_example_draws_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="the example writes its image with Pillow, which is missing")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})

    def pixels(path: Path) -> torch.Tensor:
        with image.open(path) as rendered:
            return torch.tensor(list(rendered.tobytes()), dtype=torch.float32).reshape(*rendered.size[::-1], 3)

    drawn, shown = pixels(tmp_path / "knot.png"), pixels(ROOT / "knot.png")
    # Other instruction sets round differently, so that a few alphas fall on the other side of 1/255.
    assert (drawn - shown).abs().mean() < 0.05
    assert (drawn < 250).all(2).float().mean() > 0.1  # not an empty image
