"""The doors of Python programs: ``load`` a model of any source, ``train`` a recipe."""
