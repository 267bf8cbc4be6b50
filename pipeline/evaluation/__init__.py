"""Checkpoints are scored, shown and exported. The only wing that knows matplotlib.

Entry: `evaluate.evaluate`, `predict.predict`, `export.export`. Imports loading, model and what is below them.
"""
