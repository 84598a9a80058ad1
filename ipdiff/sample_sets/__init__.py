"""Sets of images drawn from a checkpoint, and what a network predicts on the way."""
