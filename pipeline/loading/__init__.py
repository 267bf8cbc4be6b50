"""A prepared data set becomes batches: which sample at which step on which rank, fetched, augmented, checked.

Entry: `sampler.Sampler`, `feed.Feed`, `batches.training_batches`. Imports images, config, storage, data, checkpoints.
"""
