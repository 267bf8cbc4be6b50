"""A delivered model behind HTTP, by Ray Serve, with a guard against what is too large and a page to try it.

Entry: `serve.serving`, which jobs.serve calls; `service.application`, for `serve deploy`. Imports delivery, evaluation, tracking,
fault_tolerance, cluster, images and config.
"""
