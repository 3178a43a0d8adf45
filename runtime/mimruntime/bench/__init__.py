"""Benchmark an artifact on this machine: its engines, and other ways to run the same weights."""
