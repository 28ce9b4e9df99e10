"""Hostile input for everything that reads what comes from outside; docs/robustness.md says what it must show."""
