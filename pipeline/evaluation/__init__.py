"""Scores, shows and exports checkpoints. The only wing that imports matplotlib.

Entry: `evaluate.evaluate`, `predict.predict`, `export.export`. Imports loading, model and what is below them.
"""
