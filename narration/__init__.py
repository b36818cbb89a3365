"""The command `videollm-mod narrate` and the demo: a video in, events, subtitles and an overlay video out."""
