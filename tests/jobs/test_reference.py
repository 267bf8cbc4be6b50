"""The reference of all settings, and the schema for editors."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from jobs import reference
from pipeline.config.config import Config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "jobs/configs").glob("*.yaml"))


def test_the_files_are_those_of_the_sections() -> None:
    """If this fails: python -m jobs.reference."""
    assert (ROOT / "docs/settings.md").read_text() == reference.markdown()
    assert json.loads((ROOT / "jobs/configs/schema.json").read_text()) == reference.schema_of_sections() == reference.schema()


def test_every_setting_has_a_line_with_type_and_description() -> None:
    found = {setting.key: setting for name in reference.sections() for setting in reference.settings(name)}
    for name, field in Config.model_fields.items():
        for inner in getattr(field.annotation, "model_fields", {"": None}):
            key = f"{name}.{inner}".removesuffix(".")
            assert key in found or any(other.startswith(f"{key}.") for other in found), key
    assert all(setting.kind and setting.description for setting in found.values())


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("name", "text ^[a-z0-9][a-z0-9_-]*$", None),
        ("seed", "whole number from 0, below 4294967296", "0"),
        ("storage.buckets.NAME.anonymous", "true or false", "false"),
        ("data.layout", "generated, camvid, cityscapes, ade20k, voc or folders", None),
        ("data.crop_size", "whole number or list of 2 whole numbers", None),
        ("data.val_fraction", "number above 0, below 1 or null", "null"),
        ("data.generated.size", "whole number from 33, at most 16384", "65"),
        ("train.precision", "float32, bf16 or fp16", "float32"),
        ("loss.ohem", "section or null", "null"),
        ("loss.ohem.factor", "whole number from 1", "8"),
        ("evaluate.scales", "list of numbers above 0, at most 16", "[1.0]"),
        ("tune.space.NAME.log", "list of 2 numbers or null", "null"),
        ("benchmark.made.N.format", "png or jpeg", None),
    ],
)
def test_types_and_legal_values_are_said_in_words(key: str, kind: str, default: str | None) -> None:
    section = key.partition(".")[0] if "." in key else reference.TOP
    (setting,) = [setting for setting in reference.settings(section) if setting.key == key]
    assert (setting.kind, setting.default) == (kind, default)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_configuration_which_names_it(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    jsonschema.validate(yaml.safe_load(path.read_text()), reference.schema())


@pytest.mark.parametrize("change", [{"step": 5}, {"steps": 0}, {"steps": "many"}, {"precision": "fp8"}])
def test_the_schema_refuses_mistakes(change: dict[str, object]) -> None:
    tree = yaml.safe_load(CONFIGS[0].read_text())
    tree["train"] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, reference.schema())
