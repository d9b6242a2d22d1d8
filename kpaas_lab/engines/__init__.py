"""Where workloads run: one protocol, one module an engine."""
