"""Streams to learn from: the procedural world, and what turns streams into batches."""
