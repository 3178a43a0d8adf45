"""Decode images in processes of their own, which share memory with this one but not the interpreter's lock."""
