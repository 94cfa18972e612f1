"""`healthcheck`: whether a bridge is serving, by its admin port. Containers run it often, so it imports little."""

import argparse
import sys

import httpx2

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Print SERVING and return 0, or print why not and return 1."""
    try:
        # The admin port refuses host names, and the address may be one.
        headers = {"host": "localhost"}
        url = f"http://{options.address}/healthz"
        answer = httpx2.get(url, headers=headers, timeout=options.timeout, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        print(f"{options.address}: cannot reach the admin port: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    word = answer.text.strip()
    if answer.status_code not in {200, 503} or word not in {"SERVING", "NOT_SERVING"}:
        print(f"{options.address}: not the admin port of a bridge: HTTP {answer.status_code}", file=sys.stderr)
        return 1
    print(word)
    return 0 if answer.status_code == 200 else 1
