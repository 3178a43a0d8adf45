"""The HTTP service: admission, then protocols, then execution by one engine for each model."""
