"""A made-up world, seen by three sensors: for tests and first runs, never for results.

``noise``: chance by coordinates. ``land``: what covers the ground. ``render``: what sensors see. ``make``: a store.
"""
