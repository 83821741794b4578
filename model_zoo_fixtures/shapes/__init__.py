"""Small models trained on generated images of geometric shapes, and the generator."""
