"""An archive over HTTP: search, pictures, map tiles, labels; for the page, for programs and for map clients.

``services`` holds everything that can be asked, as plain Python; ``routes_*`` are thin, ``app`` puts them together.
``guard`` stands before all of it: who may ask, from which address, with how large a body.
"""
