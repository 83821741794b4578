"""What the other rooms share: tables, timing, runners, and the models that are compared."""
