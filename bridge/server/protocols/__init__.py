"""What calls look like on the wire, without the wire: framing and gRPC, for each transport that speaks them itself."""
