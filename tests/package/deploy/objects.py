"""The chart's objects, as values."""

import tomllib
from typing import Any

import yaml

from deploy.kubernetes.generate import render_documents

__all__ = ["get_container", "get_pod", "get_settings", "render", "render_hooks"]


def render(values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {key: yaml.safe_load(text) for key, text in render_documents(values).items()}


def render_hooks(values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {key: yaml.safe_load(text) for key, text in render_documents(values, hooks=True).items()}


def get_pod(values: dict[str, Any]) -> dict[str, Any]:
    return render(values)["Deployment", "ollm-bridge"]["spec"]["template"]


def get_container(values: dict[str, Any]) -> dict[str, Any]:
    (container,) = get_pod(values)["spec"]["containers"]
    return container


def get_settings(values: dict[str, Any]) -> dict[str, Any]:
    return tomllib.loads(render(values)["ConfigMap", "ollm-bridge"]["data"]["bridge.toml"])
