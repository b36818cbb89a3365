"""Evaluation: metrics, and the tasks that they are measured on."""
