"""Many tasks from a file, on one machine or several. What is finished is kept, and a run goes on where it was."""
