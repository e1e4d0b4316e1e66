"""Images with sentences: readers of image-text data sets, and captions made from labels, land cover and physics.

``loading`` finds a data set's layout, ``captioned`` is what every reader returns, ``layout_*`` read one layout each.
"""
