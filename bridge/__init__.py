"""ollm-bridge: a gRPC front for the Origin gateway's chat completions."""

__version__ = "0.1.0"
