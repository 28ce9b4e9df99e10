"""Whether a model that looks at what it drew draws better: `python -m benchmarks.best_of`."""
