"""Damaged models, pictures and folders, and a worker whose every end is watched."""
