"""Benchmarks of the input pipeline, the attention operator, the training step and the launchers.

Entry: `benchmark.benchmark`. Imports loading, model and what is below them.
"""
