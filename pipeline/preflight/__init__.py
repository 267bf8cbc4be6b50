"""The checks before a run, the same for jobs.plan, jobs.train and jobs.tune.

Entry: `checks.examine`, `plan.plan`. Imports loading, model and what is below them.
"""
