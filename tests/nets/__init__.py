"""Networks built to be ambiguous: a map lies where the image is, or there is none."""
