"""Observers of training: progress bar, events.jsonl, TensorBoard, Weights & Biases."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from momentum_gs.train.events import BlocksMeasured, Event, HeldOutScored, RoundStarted, StepDone


class ProgressBar:
    """Steps, L1 loss and number of anchors on stderr; silent if stderr is not a terminal."""

    def __init__(self, done: int = 0) -> None:
        self._bar: tqdm | None = None
        self._done = done

    def on_event(self, event: Event) -> None:
        """Moves the bar."""
        if isinstance(event, StepDone):
            if self._bar is None:
                first = event.step - 1
                self._bar = tqdm(total=event.total, initial=first, desc="train", unit="step", disable=None)
            self._bar.update(event.step - self._bar.n if not self._bar.disable else 1)
            if event.losses and event.anchors:
                l1 = sum(terms["l1"] for terms in event.losses.values()) / len(event.losses)
                self._bar.set_postfix(L1=f"{l1:.4f}", anchors=sum(event.anchors.values()), refresh=False)

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.close()


class JsonLines:
    """``events.jsonl``: one JSON object per line and event, readable while it is written."""

    def __init__(self, path: Path) -> None:
        # Opened for appending: a resumed run continues the file.
        self._file = path.open("a")

    def on_event(self, event: Event) -> None:
        """Writes the event, unless it is a ``StepDone`` without losses."""
        if isinstance(event, StepDone) and event.losses is None:
            return
        self._file.write(json.dumps({"event": type(event).__name__} | dataclasses.asdict(event)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def scalars(event: Event) -> dict[str, float]:
    """The numbers of an event by TensorBoard tag: those of 3DGS codebases (``train_loss_patches/...``), per block."""
    match event:
        case StepDone(losses=losses, anchors=anchors) if losses and anchors:
            tags = {
                f"block_{b}/train_loss_patches/{term}_loss": value
                for b, terms in losses.items()
                for term, value in terms.items()
            }
            return tags | {f"block_{b}/total_points": float(count) for b, count in anchors.items()}
        case BlocksMeasured():
            kinds = {"psnr": event.psnr, "ssim": event.ssim, "weight": event.weight}
            return {f"block_{b}/train/{kind}": v for kind, values in kinds.items() for b, v in values.items()}
        case HeldOutScored():
            return {f"block_{event.block}/test/psnr": event.psnr, f"block_{event.block}/test/ssim": event.ssim}
        case RoundStarted():
            return {"decoder_live": float(event.decoder_live)}
    return {}


class TensorBoard:
    """Scalars for ``tensorboard --logdir OUT``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def on_event(self, event: Event) -> None:
        """Records the event's scalars."""
        for tag, value in scalars(event).items():
            self._writer.add_scalar(tag, value, event.step)

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class Wandb:
    """Scalars for Weights & Biases, which is configured by its environment variables (``WANDB_MODE=offline``, ...)."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        self._run: Any = wandb.init(project="momentum-gs", name=folder.name, dir=str(folder), config=settings)

    def on_event(self, event: Event) -> None:
        """Records the event's scalars."""
        found = scalars(event)
        if found:
            self._run.log(found, step=event.step)

    def close(self) -> None:
        """Ends the tracked run."""
        self._run.finish()
