"""A partial run of `make chaos` writes its own part of docs/chaos.md and keeps the rest, with its commit."""

from tests.chaos.answers import Answer
from tests.chaos.report import answer_line, search_line, with_answers, with_searches, with_survived
from tests.chaos.searches import Found

FAULTS = "# Chaos\n\nat commit 1\n\n## One of each\n\n| run |\n"


def line(row: str, measured: str, screen: str = "said") -> str:
    return answer_line(Answer(row, "done", screen, 1, "kept", "then"), measured, {"chaos-0a1b": "BUCKET"})


def test_rows_that_did_not_run_keep_their_commit_and_faults_stay() -> None:
    first = with_answers(FAULTS, [line("R2", "old"), line("R2", "old, later version"), line("R11", "old")])
    second = with_answers(first, [line("R9", "new"), line("R2", "new")])
    assert second.startswith(FAULTS)
    cells = [text.strip("| ").split(" | ") for text in second.splitlines() if text.startswith("| R")]
    assert [(row[0], row[-1]) for row in cells] == [("R2", "new"), ("R9", "new"), ("R11", "old")]
    assert with_answers(second, []) == second


def test_faults_that_run_again_leave_the_answers() -> None:
    before = with_answers(FAULTS, [line("R2", "old")])
    again = FAULTS.replace("commit 1", "commit 2")
    assert with_survived(before, again) == before.replace("commit 1", "commit 2")
    assert with_survived(FAULTS, again) == again


def test_searches_have_their_place_between_faults_and_answers() -> None:
    whole = with_answers(FAULTS, [line("R2", "old")])
    busy, struck = (search_line(Found(name, ("a", "b"), 1.5, ()), "old") for name in ("busy", "struck"))
    with_old = with_searches(with_searches(whole, [busy]), [struck])
    assert f"|\n{struck}\n{busy}\n" in with_old
    assert "| struck | a<br>b | 1.5 min | none | old |" in with_old
    assert with_searches(with_old, [busy.replace("old", "new")]) == with_old.replace(busy, busy.replace("old", "new"))
    assert with_searches(FAULTS, [busy]).startswith(FAULTS)
    assert with_survived(with_old, FAULTS.replace("commit 1", "commit 2")) == with_old.replace("commit 1", "commit 2")
    assert with_answers(with_old, [line("R2", "old")]) == with_old


def test_what_differs_from_run_to_run_and_the_table_s_own_sign_are_replaced() -> None:
    assert "| s3://BUCKET/a / b |" in line("R2", "", "s3://chaos-0a1b/a |\n b")
    assert len(line("R2", "", "a" * 1000)) < 500
