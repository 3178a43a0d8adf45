"""Decode and resize on an NVIDIA GPU: nvImageCodec for the files, ONNX Runtime for the resize."""
