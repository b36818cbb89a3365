"""The demo, a web page with its server; `space_app/` is the folder that a Hugging Face Space runs it from.

Visitors let the model watch videos and cameras, and ask it questions. gradio serves the page and the API. `make space`
starts the demo on this machine.
"""
