"""The benchmarks of the paper: what is drawn and asked for them, and how it is scored."""
