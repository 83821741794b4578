"""What tests and benchmarks stand on: models built by hand, generated networks, definitions outside the tool."""
