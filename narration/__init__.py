"""What `videollm-mod narrate` writes: events as text, JSON lines or subtitles, and an overlay video."""
