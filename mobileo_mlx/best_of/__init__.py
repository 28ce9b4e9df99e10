"""Draws several candidates, asks the model about each, and keeps the best."""
