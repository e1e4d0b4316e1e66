"""Torch models over tokens with places on the ground: towers, attention bias, fusion, decoder, weights.

Nothing here opens a raster file. ``load`` and ``Model`` are what other packages use.
"""
