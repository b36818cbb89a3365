"""Many streams on one model: the pool of sessions, and the store that keeps them."""
