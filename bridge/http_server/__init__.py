"""HTTP/1.1 in this process's loop, by uvicorn, with every workaround for it."""
