"""What the recipes of the bundled models have in common: stages that can be resumed, their losses, and the export."""
