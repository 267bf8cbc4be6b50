"""Turns a prepared data set into batches: picks the samples of each step and rank, fetches, augments and checks them.

Entry: `sampler.Sampler`, `feed.Feed`, `batches.training_batches`. Imports images, config, storage, data, checkpoints.
"""
