"""From admitted requests to vectors: decoding, and one queue and one executor per model."""
