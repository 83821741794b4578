"""What must not be lost, and what may stand in the way of a run."""
