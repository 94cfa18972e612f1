"""The admin port: the status page, metrics and health, for people and probes."""
