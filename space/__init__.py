"""The demo: a page on which visitors let the model watch videos and cameras, and ask it.

It is served by gradio's API engine; `space_app/app.py` starts it as a Space, `make space` here.
"""
