"""Settings of training, of fault tolerance and of the end of a run."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Name, Section


class Train(Section):
    workers: int | tuple[int, int] = 2
    """Data-parallel training processes, each on one GPU if the cluster has GPUs. [min, max] follows the cluster's size. 0 trains
    in the command's own process and makes the data there too, for a debugger: nothing is retried, and no hang is looked for."""
    cpus_per_worker: float = Field(0.5, gt=0)
    """Logical CPUs that each worker reserves; Ray Data uses the rest."""
    threads: int | None = Field(None, ge=1)
    """Threads of each worker's torch; by default the workers of a node share its cores. On a CPU the sums of another number of
    threads round differently, so a search gives all its trials the same number."""
    global_batch: int = Field(8, ge=1)
    """Images per step, all workers together."""
    steps: int = Field(60_000, ge=1)
    """Optimizer steps (Cityscapes: 60,000; default of the published code 40,000)."""
    learning_rate: float = Field(0.01, gt=0)
    """Base learning rate of the poly schedule (published: 0.01)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: float = Field(1e-4, ge=0)
    """SGD weight decay (published: 1e-4 in the README, 5e-4 in its script)."""
    power: float = Field(0.9, gt=0)
    """Exponent of the poly schedule."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at which the poly schedule ends; 0 as published, 1e-4 in mmsegmentation's recipes."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises to the poly schedule; the published recipe has none."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Precision of convolutions and matrix products; weights, batch norm and loss stay float32. fp16 scales the loss."""
    compile: bool = False
    """Compile the network with torch.compile; the first steps take minutes."""
    micro_batch: int | None = Field(None, ge=1)
    """Images in one forward and backward pass of a worker; the gradients of its passes are added up. By default a worker has one
    pass per step. Batch norm and OHEM see one pass at a time."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; a gradient with a larger norm is scaled down to it."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which validation, predictions and export use; null keeps none."""
    freeze_norm: bool = False
    """Keep statistics, scale and shift of the backbone's batch norm fixed; for fine-tuning."""
    validate_every: int = Field(1000, ge=1)
    """Steps between validations; each one reports its scores and saves a checkpoint. The last step always validates."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints: the most that a crash costs. Every validation saves one too. Each holds training up for some
    seconds, which the metric checkpoint/blocked_s adds up."""
    log_every: int = Field(10, ge=1)
    """Steps between progress lines and metric points."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints to keep, besides the best one."""
    resume: Name | None = None
    """Run key of an earlier run to resume; refused if a setting that shapes the result differs. By default the key follows from
    the settings."""

    @property
    def local(self) -> bool:
        """Whether the command's own process trains, alone."""
        return self.workers == 0

    @property
    def fewest_workers(self) -> int:
        """Number of processes that train at least."""
        return self.most_workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Number of processes that train at most."""
        most = self.workers if isinstance(self.workers, int) else self.workers[1]
        return 1 if self.local else most

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr = {self.min_lr:g}: above learning_rate = {self.learning_rate:g}, from which the schedule falls "
                f"(try {self.learning_rate / 100:g}, or 0)"
            )
        return self

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if not 1 <= self.fewest_workers <= self.most_workers:
            raise ValueError(
                f"workers = {self.workers}: must be a number from 1, [min, max] with 1 <= min <= max, or 0 for this process alone"
            )
        if self.most_workers > self.global_batch:
            raise ValueError(
                f"workers = {self.workers}: more than global_batch = {self.global_batch} images a step "
                f"(try {self.global_batch} workers, or a larger global_batch)"
            )
        return self


class Faults(Section):
    max_failures: int = Field(3, ge=0)
    """Failures in a row, without a checkpoint between them, that are retried; one that would only repeat ends the run at once."""
    hang_s: float = Field(600, gt=0)
    """Seconds without a step or a validated image after which the stacks of all workers are logged and the workers restart."""
    max_skipped_steps: int = Field(10, ge=1)
    """Steps in a row without a finite loss and gradient before the run returns to its last checkpoint; every worker skips such a
    step."""
    max_rollbacks: int = Field(2, ge=0)
    """Times that a run may return to its last checkpoint for this reason before it ends with a diagnosis."""
    look_every: int = Field(20, ge=1)
    """Steps between two checks for a node that is about to be preempted, a stop request, or a spent budget."""


class Stop(Section):
    patience: int | None = Field(None, ge=1)
    """Validations in a row without a better mIoU after which the run ends early."""
    hours: float | None = Field(None, gt=0)
    """Hours of training, all attempts together, after which the run ends with a checkpoint; a larger value resumes it."""
    cost: float | None = Field(None, gt=0)
    """Cost of training after which the run ends in the same way; needs cost_per_worker_hour."""
    cost_per_worker_hour: float | None = Field(None, gt=0)
    """Price of one training worker for an hour; with it, a run says what it cost."""

    def impatient(self, since_best: int) -> str | None:
        """The reason to stop, with the fix, once `since_best` validations in a row had no better mIoU; None before."""
        if self.patience is None or since_best < self.patience:
            return None
        return f"stop.patience = {self.patience} validations passed without a better mIoU: a larger value resumes the run"

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.cost is not None and self.cost_per_worker_hour is None:
            raise ValueError("cost needs cost_per_worker_hour (try cost_per_worker_hour=2.5)")
        return self
