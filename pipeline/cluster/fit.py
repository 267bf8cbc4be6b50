"""Runs a trainer of Ray Train in the joined cluster."""

from typing import Any, cast

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

from pipeline.cluster import connect


def fit(trainer: TorchTrainer) -> None:
    """Trains. Ray Train's processes get the address of this cluster, and the handlers of signals stay the caller's.

    Its cleaner, which frees the resources of a killed run, asks a cluster whether the run is alive. With two clusters on a
    machine it would not know which one to ask. Its handler of Ctrl-C would save no checkpoint, exit with 0, and stay in place
    after the end.
    """
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    cast(Any, trainer)._register_sigint_handler = lambda controller: None
    with connect.address_in_environment():
        trainer.fit()
