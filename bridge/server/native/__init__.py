"""The call port on an HTTP/2 engine of our own: a thin shell of asyncio around the pure core in `h2/`."""
