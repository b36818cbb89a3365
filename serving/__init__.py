"""Many streams on one model: the pool of sessions."""
