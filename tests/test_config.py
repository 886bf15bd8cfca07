"""Settings: what a file means, which value wins, and one line for every error."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_gs.config.cfg_args import cfg_args
from momentum_gs.config.load import config_from_dict, config_to_dict, dump_config, load_config, load_settings
from momentum_gs.config.schema import Config, GrowthConfig, SceneConfig, Share, steps_of
from momentum_gs.core.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
SCENES = sorted((CONFIGS / "scenes").glob("*.yaml"))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error_of(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_files_and_overrides_settings_are_the_defaults() -> None:
    assert load_config(None) == Config()


def test_base_yaml_spells_out_every_setting_and_equals_the_defaults() -> None:
    import yaml

    data = yaml.safe_load((CONFIGS / "base.yaml").read_text())
    del data["stages"]

    def names(settings: dict[str, Any]) -> dict[str, Any]:
        return {key: names(value) if isinstance(value, dict) else None for key, value in settings.items()}

    assert names(data) == names(config_to_dict(Config()))
    assert load_config(CONFIGS / "base.yaml") == Config()


@pytest.mark.parametrize("path", [CONFIGS / "demo.yaml", *SCENES], ids=lambda path: path.stem)
def test_shipped_configs_load_in_both_stages(path: Path) -> None:
    blocks, coarse = load_config(path), load_config(path, ["stage=coarse"])
    assert (blocks.stage, coarse.stage) == ("blocks", "coarse")
    assert coarse.growth.until <= coarse.steps
    assert blocks.growth.until <= blocks.steps
    # The stages see the same images and cut the same scene.
    assert (coarse.scene, coarse.partition, coarse.model) == (blocks.scene, blocks.partition, blocks.model)


def test_shipped_values_of_the_papers_scenes() -> None:
    """The values of the official per-scene scripts: grid, lambda_cons, sigma, threshold, resolution."""
    table = {
        "building": ((2, 1, 4), 50, 9, 0.03, 4),
        "rubble": ((2, 1, 4), 100, 12, 0.05, 4),
        "residence": ((2, 1, 4), 50, 10, 0.03, 4),
        "sciart": ((2, 1, 4), 100, 13, 0.03, 4),
        "matrixcity": ((2, 4, 1), 50, 9, 0.05, -1),
        "campus": (None, 50, 10, 0.03, 4),
    }
    assert {path.stem for path in SCENES} == set(table)
    for path in SCENES:
        c = load_config(path)
        row = (c.partition.dim, c.teacher.consistency, c.weighting.sigma, c.partition.threshold, c.scene.resolution)
        assert row == table[path.stem], path.stem
        assert (c.steps, c.growth.until) == (60_000, 30_000)
        assert (c.partition.aabb is None) == (path.stem == "campus")
        coarse = load_config(path, ["stage=coarse"])
        assert (coarse.steps, coarse.growth.until) == (30_000, 15_000)


def test_the_settings_named_in_the_docs_exist() -> None:
    text = (CONFIGS.parent / "docs" / "fidelity.md").read_text()
    found = re.findall(r"`([a-z_.]+=[^` ]+)`", text)
    assert len(found) > 30, "the pattern finds nothing"
    for override in found:
        load_config(None, [override])
    shipped = text.split("## Hyper-parameters shipped")[1]
    defaults = re.findall(r"`([a-z_.]+=[^` ]+)`", shipped)
    assert load_config(None, defaults) == Config()


def test_precedence(tmp_path: Path) -> None:
    """Default < base < file < stage (of base, then of file) < override, with one setting for each step of the chain."""
    (tmp_path / "sub").mkdir()
    write(tmp_path, "base.yaml", """
        growth: {interval: 1, depth: 2, start_stat: 3, from_step: 4}
        stages: {coarse: {growth: {start_stat: 30, from_step: 40, until: 5}}}
    """)
    path = write(tmp_path / "sub", "file.yaml", """
        base: ../base.yaml
        growth: {depth: 1, start_stat: 300}
        stages: {coarse: {growth: {from_step: 400}}}
    """)
    blocks = load_config(path, ["growth.min_opacity=0.5"]).growth
    assert blocks == GrowthConfig(interval=1, depth=1, start_stat=300, from_step=4, min_opacity=0.5)
    coarse = load_config(path, ["stage=coarse", "growth.until=50"]).growth
    assert coarse == GrowthConfig(interval=1, depth=1, start_stat=30, from_step=400, until=50)


def test_other_name_of_a_setting(tmp_path: Path) -> None:
    """``blocks.n`` is ``partition.blocks`` wherever it is given, with the same precedence."""
    assert load_config(None, ["blocks.n=auto"]).partition.blocks == "auto"
    assert load_config(None, ["partition.blocks=3", "blocks.n=5"]).partition.blocks == 5
    write(tmp_path, "base.yaml", "partition: {blocks: 3, min_views: 9}\nstages: {coarse: {blocks: {n: 7}}}")
    path = write(tmp_path, "file.yaml", "base: base.yaml\nblocks: {n: 4, active: 2}")
    config = load_config(path)
    assert (config.partition.blocks, config.partition.min_views, config.blocks.active) == (4, 9, 2)
    assert load_config(path, ["stage=coarse"]).partition.blocks == 7
    assert load_config(path, ["stage=coarse", "partition.blocks=6"]).partition.blocks == 6
    both = write(tmp_path, "both.yaml", "partition: {blocks: 3}\nblocks: {n: 4}")
    assert "blocks.n and partition.blocks are one setting" in error_of(both)
    assert "partition.blocks is 'many', expected a whole number or one of auto" in error_of(None, "blocks.n=many")


OLD = "blocks: {settle: false, confine: false, decoder: own}\ngaussians: {prior: false, sh_lr: 0.0025}"


def test_old_names_of_settings_are_read_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    off = ["teacher.enabled=false", "blocks.decoder_freeze_rounds=0"]
    path = write(tmp_path, "old.yaml", OLD)
    now = [*off, "blocks.boundary_finetuning=false", "blocks.offset_clamping=false", "blocks.decoder=per_block"]
    wanted = load_config(None, [*now, "gaussians.from_coarse=false"])
    assert capsys.readouterr().err == ""
    assert load_config(path, off) == wanted
    (line,) = capsys.readouterr().err.splitlines()
    for old in ("blocks.settle", "blocks.confine", "blocks.decoder=own", "gaussians.prior", "gaussians.sh_lr"):
        assert f"{path}: {old} is " in line
    before = ["blocks.settle=false", "blocks={confine: false}", "blocks.decoder=own", "gaussians.prior=false"]
    assert load_config(None, [*off, *before]) == wanted
    (line,) = capsys.readouterr().err.splitlines()
    assert "command line: blocks.settle is now blocks.boundary_finetuning" in line
    assert load_config(path, off, quiet=True) == wanted
    assert capsys.readouterr().err == ""


def test_old_names_are_refused_where_they_mean_something_else(tmp_path: Path) -> None:
    both = write(tmp_path, "both.yaml", "blocks: {settle: true, boundary_finetuning: false}")
    assert "blocks.settle and blocks.boundary_finetuning are one setting" in error_of(both)
    assert "gaussians.sh_lr is 0.1" in error_of(write(tmp_path, "gone.yaml", "gaussians: {sh_lr: 0.1}"))
    assert "blocks.offset_clamping is 3" in error_of(None, "blocks.confine=3")


def test_settings_for_developers_come_last_in_their_section() -> None:
    import yaml

    text = (CONFIGS / "base.yaml").read_text()
    marked = {}
    for section in yaml.safe_load(text):
        if dataclasses.is_dataclass(cls := getattr(Config(), section, None)):
            flags = {field.name: bool(field.metadata.get("developers")) for field in dataclasses.fields(cls)}
            assert list(flags.values()) == sorted(flags.values()), section
            found = re.search(rf"^{section}:.*?(?=^\S)", text, re.M | re.S)
            assert found is not None
            last = found[0].partition("# for developers:")[2]
            marked[section] = set(re.findall(r"^  (\w+):", last, re.M))
            assert marked[section] == {name for name, flag in flags.items() if flag}, section
    assert any(marked.values())


def test_a_file_may_choose_its_stage(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "stage: coarse\nstages: {coarse: {steps: 7}}")
    assert load_config(path).steps == 7
    assert load_config(path, ["stage=blocks"]).steps == Config().steps


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("steps=3e4", "steps", 30_000),
        ("steps=1_000", "steps", 1000),
        ("optim.eps=1e-8", "optim.eps", 1e-8),  # PyYAML alone reads text here.
        ("loss.dssim=1", "loss.dssim", 1.0),
        ("teacher.enabled=false", "teacher.enabled", False),
        ("partition.dim=[2, 1, 4]", "partition.dim", (2, 1, 4)),
        ("partition.dim=2,1,4", "partition.dim", (2, 1, 4)),
        ("partition.aabb=-1,-2,-3,1,2,3.5", "partition.aabb", (-1.0, -2.0, -3.0, 1.0, 2.0, 3.5)),
        ("partition.dim=null", "partition.dim", None),
        ("scene.path=", "scene.path", None),
        ("scene.path=a=b: [c] # d", "scene.path", "a=b: [c] # d"),
        ("scene.path=2024-01-01", "scene.path", "2024-01-01"),
        ("scene.path='null'", "scene.path", "null"),
        ("scene.images=4", "scene.images", "4"),
        ("growth={interval: 7}", "growth.interval", 7),
    ],
)
def test_overrides(override: str, name: str, value: object) -> None:
    found: Any = load_config(None, [override])
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("growth.intervall=5", ["growth.intervall", "did you mean 'growth.interval'"]),
        ("n_offsets=5", ["n_offsets", "did you mean 'model.n_offsets'"]),
        ("growht.until=5", ["growht.until", "did you mean 'growth.until'"]),
        ("growth.interval.x=5", ["growth.interval.x"]),
        ("steps", ["'steps'", "key=value"]),
        ("steps=many", ["steps", "'many'", "a whole number"]),
        ("steps=1.5", ["steps", "1.5", "a whole number"]),
        ("steps=true", ["steps", "true", "a whole number"]),
        ("steps=null", ["steps", "null", "a whole number"]),
        ("loss.dssim=.nan", ["loss.dssim", "a number"]),
        ("loss.dssim=1e999", ["loss.dssim", "a number"]),
        ("loss.dssim=2", ["loss.dssim", "2.0", "[0, 1]"]),
        ("teacher.enabled=yes", ["teacher.enabled", "'yes'", "true or false"]),
        ("stage=corse", ["stage", "'corse'", "coarse, blocks"]),
        ("partition.dim=2,1", ["partition.dim", "[2, 1]", "3 whole numbers or null"]),
        ("partition.dim=2,1,x", ["partition.dim", "3 whole numbers or null"]),
        ("partition.dim=[2", ["partition.dim", "[2"]),
        ("growth=5", ["growth", "5", "a section"]),
    ],
)
def test_a_wrong_override_is_one_line_with_value_and_expectation(override: str, words: list[str]) -> None:
    message = error_of(None, override)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("growth: {intervall: 5}", ["growth.intervall", "growth.interval"]),
        ("steps: '12'", ["steps", "'12'", "a whole number"]),
        ("scene: {path: 12}", ["scene.path", "12", "text or null"]),
        ("- 1", ["[1]", "key: value"]),
        ("a: [", ["not valid YAML"]),
        ("steps: 1\nsteps: 2", ["'steps' occurs twice"]),
        ("!!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("base: 5", ["base", "5", "path"]),
        ("base: nowhere.yaml", ["cannot read", "nowhere.yaml"]),
        ("base: a.yaml", ["own base"]),
        ("stages: {corse: {}}", ["stages", "coarse and blocks"]),
        ("stages: {coarse: {stepps: 1}}", ["stages.coarse", "stepps", "steps"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, "a.yaml", text)
    message = error_of(path)
    assert [word for word in ["a.yaml", *words] if word not in message] == [], message


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert "cannot read" in error_of(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not valid YAML" in error_of(tmp_path / "b.yaml")


def test_an_error_in_a_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "stepps: 1")
    assert "base.yaml" in error_of(write(tmp_path, "a.yaml", "base: base.yaml"))


def test_empty_files_and_sections_change_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "a.yaml", "")) == Config()
    assert load_config(write(tmp_path, "a.yaml", "growth:\nsteps: 60000")) == Config()


@pytest.mark.slow
@given(path=st.text(), list_name=st.none() | st.text(), lr=st.floats(0, 1), steps=st.integers(1, 10**12))
def test_dump_and_load_give_the_same_config(
    tmp_path_factory: pytest.TempPathFactory, path: str, list_name: str | None, lr: float, steps: int
) -> None:
    """For any text, also such as '1e-4', 'null', ' #' and line breaks, and any number."""
    optim = dataclasses.replace(Config().optim, offset_lr=(lr, lr / 3))
    config = Config(steps=steps, optim=optim, scene=SceneConfig(path=path, test_list=list_name))
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config
    assert config_from_dict(config_to_dict(config)) == config


def test_cfg_args_is_one_line_that_viewers_and_python_read() -> None:
    path = "/data/sh_degree=9, white_background=True/it's"
    config = load_config(None, [f"scene.path={path}", "model.add_cov_dist=true"])
    line = cfg_args(config)
    assert "\n" not in line

    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    assert call.func.id == "Namespace"
    values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert values["source_path"] == path
    assert (values["feat_dim"], values["n_offsets"]) == (32, 10)

    def as_the_viewer_reads(name: str) -> str:
        """First occurrence of the name, then from '=' up to the next comma or parenthesis."""
        start = line.index("=", line.index(name)) + 1
        return line[start : min(i for i in (line.find(",", start), line.find(")", start)) if i >= 0)]

    assert as_the_viewer_reads("sh_degree") == "3"
    assert as_the_viewer_reads("white_background") == "False"
    assert as_the_viewer_reads("add_opacity_dist") == "False"
    assert as_the_viewer_reads("add_cov_dist") == "True"


# Shares of the run, and settings that are 'auto'.


def test_shares_are_of_the_steps_that_apply(tmp_path: Path) -> None:
    path = write(tmp_path, "own.yaml", "steps: 1000\ngrowth: {until: 60%, from_step: 7.5%}\noptim: {lr_steps: 100%}\n")
    config = load_config(path)
    assert (config.growth.until, config.growth.from_step, config.optim.lr_steps) == (600, 75, 1000)
    config = load_config(path, ["steps=3000", "growth.from_step=12"])
    assert (config.growth.until, config.growth.from_step, config.optim.lr_steps) == (1800, 12, 3000)
    # A run records numbers.
    assert "%" not in dump_config(config)


def test_a_share_is_at_least_one_step() -> None:
    assert load_config(None, ["steps=10", "weighting.every=1%"]).weighting.every == 1


def test_shares_of_global_steps_stay_until_those_are_known(tmp_path: Path) -> None:
    config = load_config(None, ["steps=100", "log.checkpoint_every=20%", "log.test_every=30"])
    assert (config.log.checkpoint_every, config.log.test_every) == ("20%", 30)
    assert (steps_of(config.log.checkpoint_every, 800), steps_of(config.log.test_every, 800)) == (160, 30)
    assert (steps_of(Share("1%"), 10), steps_of(0, 10)) == (1, 0)
    assert load_config(write(tmp_path, "recorded.yaml", dump_config(config))) == config
    assert "a share of the run such as 20%" in error_of(None, "log.checkpoint_every=often")


@pytest.mark.parametrize("setting", ["growth.until=-5%", "growth.until=60", "seed=10%", "growth.until=half"])
def test_shares_are_positive_and_of_steps_only(setting: str) -> None:
    name, _, value = setting.partition("=")
    if value.isdecimal():
        assert load_config(None, [setting]).growth.until == 60
    else:
        message = error_of(None, setting)
        assert name in message and ("60%" in message) == (name == "growth.until")


def test_settings_that_are_auto_need_a_choice(tmp_path: Path) -> None:
    path = write(tmp_path, "own.yaml", "steps: auto\nmodel: {voxel_size: auto}\ngrowth: {until: 50%}\n")
    assert "model.voxel_size is auto" in error_of(path)
    settings = load_settings(path)
    assert settings.auto == ("model.voxel_size", "steps")
    config = settings.config({"steps": 400, "model.voxel_size": 0.5})
    assert (config.steps, config.model.voxel_size, config.growth.until) == (400, 0.5, 200)
    # A setting that is given is not chosen.
    settings = load_settings(path, ["steps=100"])
    assert settings.auto == ("model.voxel_size",)
    assert settings.config({"steps": 400, "model.voxel_size": 0.5}).steps == 100
    assert "feature_dim" in error_of(None, "model.feature_dim=auto")


def test_steps_may_be_passes() -> None:
    settings = load_settings(None, ["steps=7.5 passes", "growth.until=50%"])
    assert (settings.passes, settings.auto) == (7.5, ("steps",))
    assert settings.config({"steps": 30}).growth.until == 15
    assert "steps is 7.5 passes" in error_of(None, "steps=7.5 passes")
    assert load_settings(None, ["steps=auto"]).passes is None
    for wrong in ("steps=0 passes", "steps=many passes", "growth.until=2 passes"):
        assert ("'12 passes'" in error_of(None, wrong)) == wrong.startswith("steps")
