"""Export an artifact as a Triton model repository with a KServe manifest."""
