"""KServe's Open Inference Protocol over gRPC, beside HTTP: the same models, queue, keys and limits."""
