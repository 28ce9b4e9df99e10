"""What the command `doctor` says of a machine: what it is, whether it computes right, and which forms are fast there."""
