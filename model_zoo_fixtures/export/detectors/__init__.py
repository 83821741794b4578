"""Detectors of the zoo: builders by package, and what each is expected to show."""
