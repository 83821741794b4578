"""Finding logits, feature map and head by the structure of the graph alone."""
