"""Pages for people: what was trained or evaluated, how good it is, where it fails. Each is one HTML file that needs nothing else.

Entry: `evaluation.write_report`, `training.write_page`, `compare.compare`. Imports
evaluation, tracking, fault_tolerance, storage, data and config.
"""
