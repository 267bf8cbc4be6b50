"""Who holds the cluster's CPUs and GPUs."""

from pipeline.cluster.holders import named, summed


def test_what_a_job_holds_is_added_up_and_the_largest_comes_first() -> None:
    held = [("1", {"CPU": 0.5}), ("2", {"CPU": 1, "GPU": 2}), ("1", {"CPU": 1.5, "memory": 5}), ("3", {}), ("4", {"GPU": 1})]
    found = [str(holder) for holder in summed(held, {"1": "python a.py", "2": "raysubmit_x (python b.py)"})]
    assert found == ["raysubmit_x (python b.py): 1 CPU and 2 GPUs", "job 4: 1 GPU", "python a.py: 2 CPUs"]


def test_a_command_is_shown_without_its_settings() -> None:
    assert named("raysubmit_x", "python -m jobs.train demo.yaml storage.secret=abc") == (
        "raysubmit_x (python -m jobs.train demo.yaml ...)"
    )
    assert named(None, "python notebook.py") == "python notebook.py"
