"""Sensors, grids, rasters, tiles and normalisation, without any model.

The only package that opens raster files, and only in ``files``.
"""
