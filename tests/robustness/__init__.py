"""What kills, full disks, other processes and long use must not break; docs/robustness.md has the figures."""
