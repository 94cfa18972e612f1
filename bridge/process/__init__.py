"""The process: one server, or several workers and their supervisor."""
