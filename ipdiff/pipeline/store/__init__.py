"""Content-addressed artifacts: recipes, receipts, code digests, DVC's cache."""
