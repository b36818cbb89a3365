"""Making and training checkpoints."""
