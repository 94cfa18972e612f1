"""The translation itself: bytes and values in, bytes and values out.

Nothing here waits, reads a clock or the environment, logs, opens a socket or imports grpc; what needs the time is given
it.
"""
