"""Ray itself: joins or starts a cluster, and spreads work on images over Ray tasks.

Entry: `connect.join`, `tasks.map_images`. Imports config.
"""
