"""Failures: whether a run restarts or ends, hangs, interruptions, steps that fail, and the time that it all takes.

Entry: `policy.RestartPolicy` in Ray Train's controller, the others in a worker. Imports config, storage.
"""
