"""Small networks built to be ambiguous, whose builder knows where in the image every cell of the last grid lies."""
