"""Routing that needs no training: measures what each layer's work on vision tokens changes, and chooses a budget."""
