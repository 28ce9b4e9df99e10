"""Mobile-O in MLX: one small model that answers questions on images, draws, edits and chats."""

__version__ = "0.1.0"
