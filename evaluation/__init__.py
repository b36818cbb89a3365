"""How well a model does: metrics and the tasks they are measured on."""
