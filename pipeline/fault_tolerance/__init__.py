"""Failures: whether a run restarts or ends, hangs, interruptions, steps that fail.

Entry: `policy.RestartPolicy` in Ray Train's controller, the others in a worker. Imports config, storage.
"""
