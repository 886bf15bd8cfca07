"""Bad images in training (``scene.bad_images=skip``): with them, too, ranks and resume change no bit."""

from pathlib import Path

import pytest
from tiny_run import (
    assert_same_bits,
    interrupt,
    make_config,
    model_of,
    run_ranks,
    train,
    write_table,
)
from tiny_scene import write_tiny_scene

from momentum_gs.core.errors import UserError

SKIP = ["scene.bad_images=skip", "steps=30"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_bad_images_change_neither_resume_nor_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    table = write_table(make_config(scene, tmp_path / "one"))
    bad = {table.views[0][1], table.views[2][0]}
    assert table.views[2][0] in table.views[1], "this one is bad for two blocks"
    for name in bad:
        image = scene / "images" / name
        image.write_bytes(image.read_bytes()[:200])
    outcome = train(make_config(scene, tmp_path / "one", *SKIP))
    assert outcome.bad_images.keys() == bad
    printed = capsys.readouterr().err
    assert all(printed.count(f"images/{name}") == 1 for name in bad), "each is named once"

    config = make_config(scene, tmp_path / "resumed", *SKIP, "log.checkpoint_every=17")
    interrupt(config, 22)
    train(config, resume=True)
    assert_same_bits(model_of(tmp_path / "one"), model_of(tmp_path / "resumed"))

    two = run_ranks(scene, tmp_path / "two", 2, *SKIP)
    assert_same_bits(model_of(tmp_path / "one"), two)


def test_by_default_a_bad_image_ends_the_run(tmp_path: Path) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    config = make_config(scene, tmp_path / "out")
    name = write_table(config).views[3][0]
    (scene / "images" / name).write_bytes((scene / "images" / name).read_bytes()[:200])
    with pytest.raises(UserError, match=name):
        train(config)
