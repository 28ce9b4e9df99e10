"""The world of the bundled model `emoji`: Microsoft's Fluent Emoji 3D on coloured backgrounds, and who judges it.

Nothing of the pictures is in this repository: `python -m benchmarks.emoji fetch` gets them by npm, with their names.
"""
