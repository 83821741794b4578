"""Time and memory: of insertion, of an inference, of explaining a folder, of the page."""
