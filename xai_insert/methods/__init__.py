"""Saliency methods, each written once over `Ops` and `Surgeon`."""
