"""Many tasks from a JSONL file, whose results are also the state: a run that was stopped goes on where it was.

tasks.py     a line                  -> Task: checked, complete, with the path of its picture and a digest
jobs.py      the JSONL file          -> chunks of lines, read where they are needed; checked once, then known again
folder.py    the output folder       -> what is done: pictures, lines of answers, failures; the manifest
claims.py    several processes       -> each chunk is worked on by one of them
runner.py    chunks, claims, results -> what an engine gets, and what becomes of its outcomes
engine.py    what an engine is:
             local.py (this process), servers.py (over HTTP), dask.py (a cluster)
perform.py   Task, model             -> Done or Failed; what an engine's worker calls
"""
