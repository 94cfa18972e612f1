"""The command line, `ollm-bridge`: a module per command, which is imported only when its command runs."""
