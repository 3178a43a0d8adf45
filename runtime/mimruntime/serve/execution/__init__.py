"""From what was let in to its vectors: decoding, one queue and one executor for each model."""
