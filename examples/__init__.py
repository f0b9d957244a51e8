"""Examples that run on a laptop."""
