"""Parity with the original: `python -m benchmarks.parity DIR` compares every golden of a reference directory.

A reference directory holds a tiny checkpoint in the original's layout (`tiny/checkpoint`), tensors that the original
computed with it (`tiny/goldens/<component>.{json,safetensors}`), token ids (`prompts/`), and perhaps sampled outputs
of a full-size model (`fullsize/`). Nothing here knows its dimensions, seeds or numbers of cases.
"""
