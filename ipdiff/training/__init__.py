"""One run: from the nearest saved state to a checkpoint."""
