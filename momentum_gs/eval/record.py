"""One entry of results.json: scores, and the protocol needed to interpret and reproduce them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from momentum_gs.eval.metrics import FolderScores
from momentum_gs.eval.results import code_version, config_hash, read_json

_SCORED_ALIKE = ("split", "view_list_sha256", "resolution", "ground_truth_sha256", "masks_sha256", "lpips")
_OF_THE_RENDERING = (
    "anchors", "gaussians", "gaussians_per_view", "gaussians_drawn_per_view", "storage_bytes", "views_per_second",
    "timed_views", "device", "peak_memory_bytes", "peak_memory_of", "stage", "seed", "steps", "k", "n",
    "windows", "budget", "corrected",
)  # fmt: skip


def method_record(out: Path, folder: Path, split: str, scores: FolderScores) -> dict[str, Any]:
    """The entry of OUT/<split>/ours_<N>: {metric: number, ..., blocks, worst_block, border, interior, protocol}.

    Values that were not recorded are None: renders of other programs have no ``render.json``, and runs without a
    partition no blocks.
    """
    render = read_json(folder / "render.json")
    protocol = {
        "split": split,
        **scores.protocol,
        **{name: render.get(name) for name in _OF_THE_RENDERING},
        "config_sha256": render.get("config_sha256") or config_hash(out),
        "rendered_by": render.get("code"),
        # All work since step 0; waiting and peak memory are those of the last process of rank 0.
        "training": read_json(out / "train.json") or None,
        "scored_by": code_version(),
    }
    return {**scores.mean, **scores.by_block, "protocol": protocol}


def with_merge_gaps(results: dict[str, Any]) -> dict[str, Any]:
    """``results`` with ``merge_gap`` in every ours_<N>: each metric after the merge minus before it.

    A merge that costs quality has a negative gap in PSNR and SSIM and a positive one in LPIPS. There is none where the
    blocks were not scored, or not alike, or were trained with windows: alone, such a block renders its own cell only.
    """
    found = {}
    for method, record in results.items():
        record = {key: value for key, value in record.items() if key != "merge_gap"}
        before = results.get(f"{method}_blocks")
        if before is not None and scored_alike(before, record) and not record["protocol"].get("windows"):
            after, earlier = metrics_of(record), metrics_of(before)
            if not covered_alike([record["protocol"], before["protocol"]]):
                after.pop("PSNR_covered", None)
            record["merge_gap"] = {
                metric: value - earlier[metric] for metric, value in after.items() if metric in earlier
            }
        found[method] = record
    return found


def metrics_of(record: dict[str, Any]) -> dict[str, float]:
    """The entry's means over views; one that is infinite, kept as null, is left out, and so is a share of pixels."""
    return {name: value for name, value in record.items() if isinstance(value, float) and name != "covered_share"}


def covered_alike(protocols: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all entries with scores over covered pixels used the same pixels."""
    return len({protocol.get("covered_sha256") for protocol in protocols} - {None}) <= 1


def scored_alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two entries of one run were scored with the same views, sizes, images, masks and LPIPS."""
    one, other = a.get("protocol"), b.get("protocol")
    return one is not None and other is not None and all(one.get(key) == other.get(key) for key in _SCORED_ALIKE)
