"""A search over settings: each trial is a training.

Entry: `tune.search`. Imports training and what is below it.
"""
