"""The model that is served: of one address, or whatever version an alias of the registry points to."""

import logging
import threading
import time

from pipeline.config.base import Tracking
from pipeline.delivery.predictor import Model, load
from pipeline.tracking import registry
from pipeline.tracking.client import tracking_uri

logger = logging.getLogger(__name__)

ASK_S = 10.0
"""Seconds between two questions for the version of an alias."""


class CurrentModel:
    """`.model` is the model to use for the next image. Raises ModelError and TrackingError if there is none at the start."""

    def __init__(self, address: str, device: str | None = None) -> None:
        self._address, self._device = address, device
        self._version = self._pointed_to()
        self.model: Model = load(address, device)
        self.since = time.time()
        if self._version is not None:
            threading.Thread(target=self._follow, name="follow alias", daemon=True).start()

    def _pointed_to(self) -> str | None:
        """The checkpoint and the files that the alias stands for; None if the address is no alias."""
        if not (self._address.startswith("models:/") and "@" in self._address):
            return None
        found = registry.find_model(tracking_uri(Tracking()), self._address)
        return f"{found.checkpoint.sha256} {found.model_id} {found.url}"

    def _follow(self) -> None:
        said = ""
        while True:
            time.sleep(ASK_S)
            try:
                version = self._pointed_to()
                if version != self._version:
                    self.model = load(self._address, self._device)  # the former one answers until this one is whole
                    self._version, self.since = version, time.time()
                    logger.info("%s: now %s", self._address, self.model.record.origin["checkpoint"])
                said = ""
            except Exception as error:  # MLflow or the alias is away, a model is damaged: the one that is there still answers
                if str(error) != said:
                    logger.warning("%s: the model stays as it is: %s", self._address, error)
                said = str(error)
