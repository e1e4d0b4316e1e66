"""Measure models: benchmarks of speed now, protocols of quality later.

Every number is a ratio within one run or comes with its conditions.
"""
