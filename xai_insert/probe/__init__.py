"""What a model's own runtime tells where structure alone leaves a choice."""
