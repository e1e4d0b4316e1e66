"""Compare ways for attention to know places: the same data, steps, seeds and initial values, other positions.

One variant and seed is one run: trained, measured, appended to the results file. The page is made from the files alone.
"""
