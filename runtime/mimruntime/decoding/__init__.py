"""Estimate the cost of decoding an image before Pillow reads it, and share memory between decoders."""
