"""ollm-bridge: a gRPC front for the Origin gateway's chat completions."""

import os

__version__ = "0.1.0"

# grpc's core writes what a peer's GOAWAY says to the log, as it is: a line of it can look like one of ours. It reads
# this when it is first imported, which is later.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
