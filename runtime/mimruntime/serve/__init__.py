"""The HTTP service: one file a protocol, over one line of images before each engine."""
