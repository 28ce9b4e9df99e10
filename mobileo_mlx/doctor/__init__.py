"""What `mobileo-mlx doctor` finds out about a machine: what it is, whether it computes right, what is fast there."""
