"""Load and faults on a running server: `python -m benchmarks.serving`.

`wire` speaks HTTP to the byte, `process` runs the server, `requests` has what is asked and how an answer is compared
with the one that the same request gets alone, `load` and `faults` are the two phases, `report` the tables.
"""
