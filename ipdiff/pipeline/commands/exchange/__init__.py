"""Verbs that exchange checkpoints with other code bases."""
