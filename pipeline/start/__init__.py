"""From a folder of images and masks to a trained model with one command: what `jobs.start` does.

Entry: `start.begin`, then `start.finish`. Imports every wing below, and of the user's folder only what data reads.
"""
