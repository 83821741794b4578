"""`xai-explain`: pictures, page, journal, Python classes."""
