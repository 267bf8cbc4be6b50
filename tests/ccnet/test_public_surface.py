"""The public names of `ccnet`. test_purity.py tests what its import must not load."""

import ccnet


def test_public_names():
    assert ccnet.__all__ == [
        "Average",
        "BoundaryIoU",
        "CCNet",
        "ConfusionMatrix",
        "CrissCrossAttention",
        "CrissCrossAttention3d",
        "FrozenBatchNorm2d",
        "Output",
        "RCCAHead",
        "SampleDropout2d",
        "StepResult",
        "SyncedBatchNorm2d",
        "attention_maps",
        "bootstrap_interval",
        "build_ccnet",
        "build_optimizer",
        "evaluate_step",
        "export",
        "freeze_batch_norm",
        "inference",
        "load",
        "losses",
        "poly_learning_rate",
        "synchronise_batch_norm",
        "train_step",
        "weights",
    ]
    assert all(hasattr(ccnet, name) for name in ccnet.__all__)
