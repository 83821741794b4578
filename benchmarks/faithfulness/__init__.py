"""Maps against the model's own behaviour: what changes when the image changes where they point."""
