"""An artifact as a model repository of Triton, and its manifest for KServe."""
