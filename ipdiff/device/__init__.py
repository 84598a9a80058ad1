"""What numbers are computed on: random streams, kernels, captured programs, precision."""
