"""How commands find and load a checkpoint, and how the Auto classes of transformers come to know this package."""
