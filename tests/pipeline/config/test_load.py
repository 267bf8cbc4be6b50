"""All mistakes are reported at once; each names the key, the value given, the legal values and the nearest fix."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.base import Bucket
from pipeline.config.config import Config, without_password
from pipeline.config.load import load, override, parse
from pipeline.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"


def tree(**change: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "t",
        "storage": {"path": "s3://bucket"},
        "data": {"name": "g", "layout": "generated", "crop_size": 65},
        "model": {"backbone": "resnet18", "recurrence": 2},
        "train": {"workers": 2, "global_batch": 8, "steps": 10},
    }
    for key, value in change.items():
        section, _, field = key.partition("__")
        if field:
            base[section] = base.get(section, {}) | {field: value}
        else:
            base[section] = value
    return base


def mistakes(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(values)
    return caught.value.mistakes


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_is_legal(path: Path) -> None:
    assert load(path).name


def test_a_crop_off_the_grid_names_its_neighbours() -> None:
    assert mistakes(tree(data__crop_size=700)) == ["data.crop_size = 700: must be 8k + 1 and at least 17 (try 697 or 705)"]


def test_recurrence_has_no_default() -> None:
    (line,) = mistakes(tree(model={"backbone": "resnet18"}))
    assert line.startswith("model.recurrence: missing; R, passes of the criss-cross attention; the paper uses 2")


def test_an_unknown_key_names_the_nearest() -> None:
    (line,) = mistakes(tree(train__lerning_rate=0.1))
    assert "train.lerning_rate = 0.1: no such setting (did you mean train.learning_rate?)" in line


def test_a_key_in_the_wrong_section_is_shown_home() -> None:
    (line,) = mistakes(tree(recurrence=2))
    assert "(did you mean model.recurrence?)" in line


def test_a_wrong_word_names_the_legal_ones() -> None:
    (line,) = mistakes(tree(model__backbone="resnet19"))
    assert line == "model.backbone = 'resnet19': must be one of resnet18, resnet34, resnet50, resnet101, small (try resnet18)"


def test_a_wrong_type_names_what_came() -> None:
    (line,) = mistakes(tree(train__steps="many"))
    assert line.startswith("train.steps = 'many': ")
    assert "integer" in line


def test_more_workers_than_images_a_step_and_a_range_upside_down_are_refused() -> None:
    assert mistakes(tree(train__global_batch=1)) == [
        "train.workers = 2: more than global_batch = 1 images a step (try 1 workers, or a larger global_batch)"
    ]
    assert mistakes(tree(train__workers=[3, 2])) == [
        "train.workers = (3, 2): must be a number from 1, [min, max] with 1 <= min <= max, or 0 for this process alone"
    ]


def test_all_mistakes_come_at_once() -> None:
    assert len(mistakes(tree(data__crop_size=700, model__backbone="vgg", train__steps="many", colour="red"))) == 4


def test_a_search_space_is_checked_value_by_value() -> None:
    lines = mistakes(tree(tune={"space": {"data.crop_size": {"choice": [65, 70]}, "train.lerning_rate": {"log": [0.1, 0.2]}}}))
    assert lines[0] == "tune.space: data.crop_size = 70: must be 8k + 1 and at least 17 (try 65 or 73)"
    assert "did you mean train.learning_rate?" in lines[1]


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("name: demo")
    with pytest.raises(ConfigError, match=r"dem\.yaml: No such file.*did you mean .*demo\.yaml"):
        load(tmp_path / "dem.yaml")


def test_overrides_are_yaml_and_checked() -> None:
    config = load(CONFIGS / "demo.yaml", ["train.steps=7", "data.crop_size=[65, 73]", "train.learning_rate=1e-2"])
    assert (config.train.steps, config.data.crop_size, config.train.learning_rate) == (7, (65, 73), 0.01)
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "demo.yaml", ["train.steps", "train.step=3"])
    assert len(caught.value.mistakes) == 2


# Options; a shipped configuration must use each of them, so that no option is unused.
USED = {
    "elastic workers": lambda c: c.train.fewest_workers < c.train.most_workers,
    "bf16": lambda c: c.train.precision == "bf16",
    "fp16": lambda c: c.train.precision == "fp16",
    "torch.compile": lambda c: c.train.compile,
    "gradient accumulation": lambda c: c.train.micro_batch,
    "clipping": lambda c: c.train.clip_norm,
    "average of the weights": lambda c: c.train.ema_decay,
    "frozen batch norm": lambda c: c.train.freeze_norm,
    "fine-tuning": lambda c: c.model.weights,
    "validation in the background": lambda c: c.evaluate.background,
    "warm-up": lambda c: c.train.warmup_steps,
    "early stop": lambda c: c.stop.patience,
    "time budget": lambda c: c.stop.hours,
    "cost budget": lambda c: c.stop.cost,
}


@pytest.mark.parametrize("option", USED)
def test_a_shipped_configuration_uses(option: str) -> None:
    assert any(USED[option](load(path)) for path in CONFIGS.glob("*.yaml"))


def test_what_is_recorded_has_no_password() -> None:
    config = parse(tree(tracking={"uri": "postgresql://me:secret@db:5432/mlflow"}))
    assert config.record()["tracking"]["uri"] == "postgresql://db:5432/mlflow"
    assert without_password("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"


def test_a_range_that_the_setting_refuses_is_a_mistake() -> None:
    (line, *_) = mistakes(tree(tune={"space": {"train.global_batch": {"log": [4, 32]}}}))
    assert line.startswith("tune.space: train.global_batch = 11.3")


def test_a_configuration_cannot_be_changed() -> None:
    config: Config = parse(tree())
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 5  # type: ignore[misc]


def test_losses_come_with_the_published_values() -> None:
    config = parse(tree(loss={"ohem": {}, "consistency": {}}))
    assert (config.loss.ohem.thresh, config.loss.ohem.min_kept, config.loss.ohem.factor) == (0.7, None, 8)
    assert (config.loss.consistency.weight, config.loss.consistency.channels) == (1.0, 16)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("loss.ohem.thresh=2", "loss.ohem.thresh = 2: input should be less than or equal to 1"),
        ("evaluate.window=700", "evaluate.window = 700: must be 8k + 1 and at least 17 (try 697 or 705)"),
        ("evaluate.scales=[1.0, -1]", "evaluate.scales.1 = -1: input should be greater than 0"),
        ("data.scale_step=0.2", "data.scale_step = 0.2: must divide scale [0.75, 2.0] (try [0.75, 1.95])"),
        ("evaluate.window=0", "evaluate.window = 0: must be 8k + 1 and at least 17 (try 17 or 25)"),
        (
            "loss.class_weights=[0, 0]",
            "loss.class_weights = [0, 0]: must have a weight above 0 (try null, which weighs all classes equally)",
        ),
        (
            "loss.ohem.tresh=0.6",
            "loss.ohem.tresh = 0.6: no such setting (did you mean loss.ohem.thresh?); legal here: thresh, min_kept, factor",
        ),
        (
            "loss.consistency.layer=rcca_out",
            "loss.consistency.layer = 'rcca_out': must be one of rcca_output, rcca_input (try rcca_output)",
        ),
        ("evaluate.recurrence=true", "evaluate.recurrence = True: must be a number"),
    ],
)
def test_bad_loss_and_inference_settings_are_explained(setting: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "demo.yaml", ["data.scale=[0.75, 2.0]", setting])
    assert caught.value.mistakes == [line]


def test_a_search_may_vary_a_section_that_is_null_by_default() -> None:
    space = {"loss.ohem.thresh": {"choice": [0.6, 0.7]}}
    assert override(parse(tree(tune={"space": space})), {"loss.ohem.thresh": 0.6}).loss.ohem.thresh == 0.6
    with pytest.raises(ConfigError, match=r"seed.x: `seed` is a setting, not a section"):
        override(parse(tree()), {"seed.x": 1})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_can_be_searched_over(path: Path) -> None:
    """An override validates the whole configuration again, including the defaults."""
    assert override(load(path), {"train.learning_rate": 0.02}).train.learning_rate == 0.02


def test_patience_needs_scores_in_time() -> None:
    with pytest.raises(ConfigError) as raised:
        parse(tree(stop={"patience": 3}, evaluate={"background": True}))
    assert raised.value.mistakes == [
        "evaluate.background = true: its scores come too late for stop.patience = 3 (try evaluate.background=false or "
        "stop.patience=null)"
    ]


TYPED = [
    "/data/my set #1",
    "[new]/set",
    "@x",
    "%x",
    "*x",
    "a: b",
    "~x y ",
    "{a}",
    "'a'",
    '"a"',
    "!x",
    "&x",
    "- x",
    "0x1f",
    "on",
    "1e3",
    "a=b",
    "?x",
]


@pytest.mark.parametrize("text", TYPED)
def test_a_setting_that_is_a_text_takes_the_text_as_typed(text: str) -> None:
    settings = ["data.source", "predict.images", "storage.path"]
    config = load(CONFIGS / "demo.yaml", [f"{setting}={text}" for setting in settings])
    assert {config.data.source, config.predict.images, config.storage.path} == {str(Path(text).absolute())}
    config = load(CONFIGS / "demo.yaml", [f"tracking.experiment={text}", f"data.lists.train={text}", f"storage.endpoint={text}"])
    assert (config.tracking.experiment, config.data.lists, config.storage.endpoint) == (text, {"train": text}, text)


def test_names_that_look_like_numbers_are_texts() -> None:
    config = load(CONFIGS / "demo.yaml", ["name=007", "data.name=1e3", "train.resume=08"])
    assert (config.name, config.data.name, config.train.resume) == ("007", "1e3", "08")


@given(st.text(min_size=1, alphabet=st.characters(codec="utf-8", exclude_characters="\0")).filter(lambda text: text != "null"))
def test_any_text_arrives(text: str) -> None:
    config = load(CONFIGS / "demo.yaml", [f"storage.endpoint={text}", f"evaluate.checkpoint={text}"])
    assert (config.storage.endpoint, config.evaluate.checkpoint) == (text, text)


def test_null_is_none_where_none_is_legal_and_no_text_is_a_mistake() -> None:
    assert load(CONFIGS / "demo.yaml", ["predict.images=null"]).predict.images is None
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "demo.yaml", ["storage.path=", "predict.images="])
    assert caught.value.mistakes == ["storage.path=: has no value", "predict.images=: has no value (try null)"]


def test_a_value_that_is_no_yaml_is_explained_by_its_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "demo.yaml", ["train.steps=@x", "train.learning_rate={", "data.crop_size=2026-13-01"])
    assert [line.split(":")[0] for line in caught.value.mistakes] == [
        "data.crop_size = '2026-13-01'", "train.steps = '@x'", "train.learning_rate = '{'"
    ]  # fmt: skip


def test_a_key_of_a_dictionary_may_have_dots() -> None:
    overrides = ["storage.buckets.my.bucket.anonymous=true", "data.oversample.traffic.light=2", "storage.buckets.b={profile: p}"]
    config = load(CONFIGS / "demo.yaml", overrides)
    assert config.data.oversample == {"traffic.light": 2}
    assert config.storage.buckets == {"my.bucket": Bucket(anonymous=True), "b": Bucket(profile="p")}
    space = "tune.space.train.learning_rate={log: [0.001, 0.1]}"
    assert load(CONFIGS / "demo.yaml", [space]).tune.space["train.learning_rate"].log == (0.001, 0.1)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match=r"a\.yaml: not text in UTF-8: save it as such"):
        load(tmp_path / "a.yaml")


NO_VALUE = "is a section, which takes no value: set what is in it"
LEGAL = "legal here: endpoint, profile, anonymous, requester_pays, addressing"


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("b.c.anonymos=true", f"b.c.anonymos = True: no such setting (did you mean storage.buckets.b.c.anonymous?); {LEGAL}"),
        ("b={anonymos: 1}", f"b.anonymos = 1: no such setting (did you mean storage.buckets.b.anonymous?); {LEGAL}"),
        ("b.xyz=1", f"b.xyz = 1: no such setting; {LEGAL}"),
        (
            "b=true",
            "b = True: is a section, which takes no value: set what is in it (storage.buckets.b.endpoint=...), or leave it out",
        ),
        ("b.addressing=virtal", "b.addressing = 'virtal': must be one of path, virtual (try virtual)"),
    ],
)
def test_a_misspelt_setting_of_a_bucket_names_the_legal_ones(override: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(CONFIGS / "demo.yaml", [f"storage.buckets.{override}"])
    assert caught.value.mistakes == [f"storage.buckets.{mistake}"]
