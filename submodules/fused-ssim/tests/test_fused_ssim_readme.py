"""The example in README.md runs as it stands and draws the image beside it."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_example_draws_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="the example writes its image with Pillow, which is missing")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})

    def pixels(path: Path) -> torch.Tensor:
        with image.open(path) as rendered:
            return torch.tensor(list(rendered.tobytes()), dtype=torch.float32)

    drawn, shown = pixels(tmp_path / "ascent.png"), pixels(ROOT / "ascent.png")
    # 150 steps of Adam accumulate round-off; a mean difference of one level of 255 is far more than that.
    assert (drawn - shown).abs().mean() < 1
    assert drawn.std() > 10  # not an empty image
