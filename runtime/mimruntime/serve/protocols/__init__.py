"""The HTTP protocols: a router for each, and the bodies it reads and writes."""
