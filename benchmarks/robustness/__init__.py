"""Damaged files, killed processes, very long runs."""
