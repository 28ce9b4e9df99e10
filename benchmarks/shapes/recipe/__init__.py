"""How the bundled model `tiny` was trained."""
