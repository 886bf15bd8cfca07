"""Settings for what the official code does with the shared decoder: which weights it saves, and its Adam moments."""

from pathlib import Path

import pytest
import torch
from tiny_run import CPU, assert_same_bits, interrupt, make_config, model_of, train, write_table
from tiny_scene import write_tiny_scene

from momentum_gs.config.load import load_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.data.scene import load_scene
from momentum_gs.train.decoders.learner import DecoderLearner
from momentum_gs.train.events import Event, Observers, RoundEnded
from momentum_gs.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")

OFFICIAL = (
    "blocks.schedule=sequential", "blocks.decoder_freeze_rounds=0", "blocks.saved_decoder=block_0",
    "blocks.decoder_moments=per_round", "weighting.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"))


class DecoderAt:
    """Keeps the decoder's tensors at the end of a round."""

    def __init__(self, training: Training, step: int) -> None:
        self._training, self._step = training, step
        self.weights: dict[str, torch.Tensor] = {}

    def on_event(self, event: Event) -> None:
        if isinstance(event, RoundEnded) and event.step == self._step:
            self.weights = {k: v.clone() for k, v in self._training._decoders.to_tensors().items()}

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_the_decoder_of_block_0_is_saved_and_resumed(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path / "whole", *OFFICIAL)
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU)
    # 60 block steps in rounds of 15, two rounds an epoch: blocks 0 and 2 end at step 105, 1 and 3 at 120.
    at_105 = DecoderAt(training, 105)
    training.run(Observers([at_105]))
    saved = {k: v for k, v in model_of(tmp_path / "whole").items() if k.startswith("decoder.")}
    for name, value in saved.items():
        assert torch.equal(value, at_105.weights["student." + name.removeprefix("decoder.")])
    final = training._decoders.to_tensors()
    assert any(not torch.equal(final[k], at_105.weights[k]) for k in final if k.startswith("student."))

    config = make_config(scene_folder, tmp_path / "broken", *OFFICIAL, "log.checkpoint_every=10")
    interrupt(config, 113)
    train(config, resume=True)
    assert_same_bits(model_of(tmp_path / "broken"), model_of(tmp_path / "whole"))


def test_moments_of_a_group_do_not_change_while_others_train() -> None:
    learner = DecoderLearner(load_config(None), CPU)
    parameters = list(learner.module.parameters())

    def step(group: str, gradient: float) -> torch.Tensor:
        learner.switch(group)
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        learner.step(0)
        return learner.to_tensors()[f"group.{group}.adam.opacity.0.weight.exp_avg"].clone()

    first = step("0-2", 1.0)
    other = step("1-3", -3.0)
    assert torch.equal(other, -3 * first), "it starts from zero, not from the moments of the other group"
    waiting = learner.to_tensors()["group.0-2.adam.opacity.0.weight.exp_avg"]
    assert torch.equal(waiting, first)
    torch.testing.assert_close(step("0-2", 1.0), first * 1.9)

    again = DecoderLearner(load_config(None), CPU)
    again.load_tensors({k: v.clone() for k, v in learner.to_tensors().items()})
    for k, v in learner.to_tensors().items():
        assert torch.equal(again.to_tensors()[k], v)
