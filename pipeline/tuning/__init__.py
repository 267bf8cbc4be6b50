"""A search over settings: each trial is a training.

Entry: `tune.search`, `sync.sync`. Imports training and what is below it.
"""
