"""Make models: objectives and training runs.

Recipes, outside the package, compose what is here.
"""
