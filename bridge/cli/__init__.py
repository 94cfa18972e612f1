"""The command line: `ollm-bridge`, a module a command."""
