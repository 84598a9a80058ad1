"""Checkpoints of other code bases in, and ours out: formats, checks, conversions. Knows no project and no engine."""
