"""Numbers and images as figures."""
