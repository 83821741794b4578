"""What the outputs of a model mean: recognised once, written into the metadata, read by whatever runs the model."""
