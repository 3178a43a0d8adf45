"""Code shared by TensorRT and TensorRT-RTX; functions take the library's module as an argument."""
