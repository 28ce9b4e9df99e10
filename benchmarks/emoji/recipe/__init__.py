"""How the bundled model `emoji` was made."""
