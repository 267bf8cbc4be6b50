"""What learns: network, objective, optimizer, and the published weights that they start from.

Entry: `learner.Learner`. Imports config, storage, checkpoints.
"""
