"""Parts by themselves, on graphs built by hand: a failure names its room."""
