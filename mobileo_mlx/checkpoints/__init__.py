"""Models on disk: found, checked, loaded, converted."""
