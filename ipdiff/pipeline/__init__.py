"""Naming, running, recording and checking: no byte of a number depends on it."""
