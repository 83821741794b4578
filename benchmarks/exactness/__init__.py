"""Maps against their definitions, and against the places that a builder knows."""
