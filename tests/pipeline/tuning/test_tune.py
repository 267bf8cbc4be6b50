"""The settings of trials, and how many run at a time."""

from pipeline.tuning.trials import concurrent_trials, trial_config
from tests.pipeline.preflight.test_resources import config, elastic


def test_a_trial_of_an_elastic_configuration_has_the_fewest_workers() -> None:
    trial = trial_config(elastic(1, 4), {"train.learning_rate": 0.05})
    assert (trial.train.workers, trial.train.learning_rate) == (1, 0.05)
    assert trial.run_key == trial_config(config(), {"train.learning_rate": 0.05}).run_key  # the number of workers is not in it


def test_a_trial_is_validated_in_place() -> None:
    assert not trial_config(config(evaluate__background=True), {}).evaluate.background


def test_as_many_trials_run_at_a_time_as_fit_with_the_fewest_workers() -> None:
    assert concurrent_trials(elastic(1, 8), {"CPU": 16}) == 10  # each takes half a CPU, and two halves for its data
    assert concurrent_trials(elastic(1, 8), {"CPU": 16, "GPU": 4}) == 4


def test_trials_at_a_time_follow_cpus_and_gpus() -> None:
    assert concurrent_trials(config(), {"CPU": 2}) == 1
    assert concurrent_trials(config(), {"CPU": 16}) == 8
    assert concurrent_trials(config(), {"CPU": 16, "GPU": 4}) == 2
    assert concurrent_trials(config(), {"CPU": 1}) == 1
