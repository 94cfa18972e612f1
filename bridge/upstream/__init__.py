"""The HTTP side: posts a request to the gateway and hands back what it answers, bytes only."""
