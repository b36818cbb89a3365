"""`videollm-mod bench`: what the model costs in time and memory, measured side by side with a dense one."""
