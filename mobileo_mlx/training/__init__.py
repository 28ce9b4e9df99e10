"""Training: the same networks, prompts and conditioning as inference.

A line of data becomes a loss in five steps, each a module:

    data.py (jsonl.py, webdataset.py)  file           -> Sample (quadruplets.py), checked
    (tar_files.py, gzipped.py)
    sequences.py                       Sample         -> TokenSequence, ids and labels
    batches.py                         Samples        -> Batch, with latents, noise and noise levels
    trainable.py                       Batch          -> embeddings, hidden states, what the DiT reads
    losses.py                          of these       -> flow matching and cross-entropy

loop.py takes optimizer steps, guard.py ends a run that makes no sense, and run_state.py keeps what was done;
trainer.py puts all of it together and yields events.py.
"""
