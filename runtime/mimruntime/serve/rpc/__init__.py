"""KServe's Open Inference Protocol over gRPC, beside HTTP: the same models, queue, keys and limits."""

import os

# Read when grpc is imported. Its library writes to stderr by itself, and repeats what strangers send.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
