"""What TensorRT and TensorRT-RTX share: one code path, the library's module is passed in."""
