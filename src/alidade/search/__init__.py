"""Embed an archive of rasters, keep it, search it.

The truth is a directory of immutable GeoParquet shards and a manifest (``archive``, ``writer``). ``embed``
fills it, ``scan`` answers exactly without an index, ``export`` and ``picture`` show the answers.
"""
