"""Every mutation can still be made, and the test that must catch it exists; `python -m tests.mutations` runs them."""

import ast

import pytest

from tests.mutations.mutations import MUTATIONS, ROOT, Mutation


def test_there_are_ten_of_different_names() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) == 10


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_mutation_fits_its_file_and_names_a_test_that_exists(mutation: Mutation) -> None:
    whole = (ROOT / mutation.file).read_text()
    assert ast.dump(ast.parse(mutation.applied(whole))) != ast.dump(ast.parse(whole))
    file, _, function = mutation.test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert function.partition("[")[0] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_text_that_occurs_twice_or_not_at_all_is_refused() -> None:
    mutation = Mutation("m", "f.py", "a", "b", "t.py::test")
    assert mutation.applied("ax") == "bx"
    for text in ("aa", "x"):
        with pytest.raises(ValueError, match=r"mutation m: its old text occurs [02] times in f\.py: must be once"):
            mutation.applied(text)
