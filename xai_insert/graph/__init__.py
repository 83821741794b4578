"""The format-neutral graph: a read-only view, cut values, and the protocols for writing subgraphs."""
