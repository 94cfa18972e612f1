"""The gRPC side: takes calls, decides who may make them, and ends each with a status."""
