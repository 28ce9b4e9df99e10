"""Locks on open files and folders, which the system gives back when a process ends, however it ends."""

from __future__ import annotations

import fcntl


def lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Locks an open file or folder against all others that ask for its lock, until the descriptor is closed.

    Args:
        descriptor: of what is locked.
        wait: until another process has given it back.

    Returns:
        True if the lock is held now; False if another process, or another descriptor of this one, holds it; None if
        the file system has no locks, as some network file systems.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
