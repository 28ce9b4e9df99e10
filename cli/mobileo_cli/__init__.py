"""The `mobileo-mlx` command. All printing of the project lives in this package."""
