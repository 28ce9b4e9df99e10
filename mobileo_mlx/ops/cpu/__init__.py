"""Forms that only a CPU takes."""
