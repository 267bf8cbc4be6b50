"""Ray as such: joining or starting a cluster, and work on images spread over Ray tasks.

Entry: `connect.join`, `tasks.map_images`. Imports config.
"""
