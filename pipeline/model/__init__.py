"""The network, its objective and its optimizer, and the published weights that they start from.

Entry: `learner.Learner`. Imports config, storage, checkpoints.
"""
