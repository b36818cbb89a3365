"""The commands of `videollm-mod`, one module each, and what they share.

A command's module is imported for every `--help`: what is slow to import, torch above all, is imported where it runs.
"""
