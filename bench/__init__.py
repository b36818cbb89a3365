"""`videollm-mod bench`: time and memory of mixture of depths, measured next to a dense model."""
