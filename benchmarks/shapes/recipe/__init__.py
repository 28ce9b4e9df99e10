"""How the bundled model `tiny` was made: `python -m benchmarks.shapes train`.

Nothing else needs it.
"""
