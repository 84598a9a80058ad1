"""Images: reading the sources, arrays on disk, and the way into and out of the networks."""
