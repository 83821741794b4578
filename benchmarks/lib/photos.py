"""Photographs of scikit-image: of each it says CC0 by the photographer, or released into the public domain."""

FREE_PHOTOS = ("chelsea", "coffee", "rocket", "astronaut")
