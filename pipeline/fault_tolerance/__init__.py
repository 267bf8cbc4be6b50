"""What a failure means and what follows: restart or end, hangs, interruptions, steps that fail.

Entry: `policy.RestartPolicy` in Ray Train's controller, the others in a worker. Imports config, storage.
"""
