"""Keys are distinct and legal for names in any script."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from mlflow.utils import validation

from pipeline.tracking.keys import CLASS_LONGEST, LONGEST, class_keys, legal_key

NAMES = st.text(st.characters(exclude_categories=()), min_size=1, max_size=300)


def check(key: str) -> None:
    """Raises MlflowException for a key that a server would refuse, on any platform."""
    validation._validate_metric(key, 0.5, 0, 0)
    validation._validate_tag_name(key)
    assert ":" not in key  # refused by a server on Windows, and by older ones


@pytest.mark.parametrize("name", ["road", "Road", "traffic light", "a/b", "a-b_c.d 1", "道路", "Straße", "x" * 200])
def test_a_name_that_every_server_takes_is_its_own_key(name: str) -> None:
    assert class_keys([name]) == [name]


def test_names_that_mlflow_refuses_get_a_readable_key_with_a_hash() -> None:
    assert legal_key("a:b") == "a_b-6783a31e"
    assert legal_key("..") == "_-5ec1f7e7"


@pytest.mark.parametrize(
    "names",
    [
        ["道路", "汽车", "树木"],
        ["🚗", "🚌"],
        ["a?", "a*", "a_", "a:", "a"],
        ["x" * 300, "x" * 299 + "y"],
        [" ", "  ", "a", "a ", "a\n"],
        ["/", "//", "a/", "/a", "./a", "../a", "a/../a", ".", ".."],
        ["caf\u00e9", "cafe\u0301", "सड़क", "सडक"],
    ],
    ids=ascii,
)
def test_similar_names_have_distinct_legal_keys(names: list[str]) -> None:
    keys = class_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        check(f"val/iou/{key}")
        assert legal_key(f"val/iou/{key}") == f"val/iou/{key}"


def test_names_that_a_database_may_take_for_equal_have_distinct_keys() -> None:
    """MySQL's default collation ignores case and accents."""
    keys = class_keys(["road", "Road", "röad"])
    assert keys[0] == "road"
    assert len({key.casefold().replace("ö", "o") for key in keys}) == 3


@given(st.lists(NAMES, max_size=20, unique=True))
def test_any_names_have_distinct_legal_keys(names: list[str]) -> None:
    keys = class_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert len(key) <= CLASS_LONGEST
        check(f"val/iou/{key}")


@given(NAMES)
def test_a_legal_key_stays(name: str) -> None:
    key = legal_key(name)
    check(key)
    assert len(key) <= LONGEST
    assert legal_key(key) == key
