"""One image of a run: held-out views as ground truth, render and error, side by side.

    python scripts/figures/side_by_side.py OUT FILE.png [VIEWS]
"""

import sys
from pathlib import Path

import cv2
import numpy as np


def main(out: Path, image: Path, count: int) -> None:
    """Picks ``count`` views evenly from the newest merged render of the test split."""
    folders = [f for f in out.glob("test/ours_*") if f.name.removeprefix("ours_").isdigit()]
    if not folders:
        raise SystemExit(f"{out}: no test/ours_<N> folder; run 'momentum-gs render {out}' first")
    newest = max(folders, key=lambda f: int(f.name.removeprefix("ours_")))
    names = sorted(p.relative_to(newest / "renders") for p in (newest / "renders").rglob("*.png"))
    rows = []
    for i in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int):
        truth, render = (cv2.imread(str(newest / kind / names[i])) for kind in ("gt", "renders"))
        # Errors are shown five times larger: a good render's would be black otherwise.
        error = cv2.convertScaleAbs(cv2.absdiff(truth, render), alpha=5)
        rows.append(np.hstack([truth, render, error]))
    width = min(row.shape[1] for row in rows)
    rows = [cv2.resize(r, (width, round(r.shape[0] * width / r.shape[1]))) for r in rows]
    if not cv2.imwrite(str(image), np.vstack(rows)):
        raise SystemExit(f"{image}: could not be written")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) == 4 else 3)
