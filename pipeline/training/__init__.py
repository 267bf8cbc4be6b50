"""One run: the driver, the loop of a worker, validation, checkpoints.

Entry: `train.train` (driver), `loop.train_worker` (worker). Imports evaluation, preflight and what is below them.
"""
