"""A configuration is read as YAML 1.2 reads it; what its author did not mean is a mistake with its line."""

from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.config.settings_yaml import dump_yaml, parse_yaml
from pipeline.errors import ConfigError

DEMO = Path(__file__).parents[3] / "jobs" / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E3", 1000.0), ("1_000", 1000), ("-.inf", float("-inf")), ("0x1f", 31), ("true", True), ("~", None),
        ("1:30", "1:30"), ("010", 10), ("no", "no"), ("on", "on"), ("2026-12-01", "2026-12-01"), ("", None),
    ],
)  # fmt: skip
def test_numbers_and_words_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {steps: 1}\nname: a\ntrain: {steps: 2}", "line 3, column 1: `train` is already in line 1: keep one of the two"),
        ("train: {steps: 1, steps: 2}", "line 1, column 19: `steps` is already in line 1"),
        ("data:\n\tname: a", r"line 2, column 1: found character '\\t' that cannot start any token: indent with blanks"),
        ("[" * 3000, "nested too deep"),
        ("seed: !!python/object/apply:os.getpid []", "line 1, column 7: could not determine a constructor"),
        (b"name: \xff", "not text in UTF-8"),
    ],
)
def test_what_is_no_yaml_names_its_line(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_yaml(text)


def test_a_section_may_be_merged_into_others() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: {<<: *a, x: 3}") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 3},
    }


@pytest.mark.parametrize("change", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.decode().encode("utf-16")])
def test_a_file_of_an_editor_is_read(change: object, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(change(DEMO.read_bytes().replace(b"\n", b"\r\n")))  # type: ignore[operator]
    assert load(tmp_path / "a.yaml") == load(DEMO)


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("- a", "holds a list"), ("a", "holds a single value")])
def test_a_file_without_settings_says_what_to_write(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"a\.yaml: {words}: write `section: "):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", ["no", "1e-3", "010", "null", "~", "1:30", "0x1F", "2020-01-01", "a: b", "#x", "é", "'", "", "1_0"]
)
def test_a_text_is_written_so_that_it_stays_a_text(text: str) -> None:
    assert parse_yaml(dump_yaml({"name": text, "list": [text]})) == {"name": text, "list": [text]}


@pytest.mark.parametrize("value", [0.0001, 1e-5, 1.0, 8, True, None, [1, 2.5], {}])
def test_a_value_comes_back(value: object) -> None:
    assert parse_yaml(dump_yaml({"x": value})) == {"x": value}
