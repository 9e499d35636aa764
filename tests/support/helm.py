"""The chart as Helm's own code renders it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

CHART: Final = Path(__file__).parents[2] / "manifests/chart"
Object = dict[str, Any]


def helm() -> Any:
    """The module helm_python."""
    return pytest.importorskip("helm_python", reason="no wheel of Helm's code for this machine")


def rendered(values: Object, *, namespace: str = "default") -> dict[str, str]:
    """The text of each template. RuntimeError with Helm's message for values that are refused."""
    try:
        with helm().Chart.load(CHART) as chart:
            texts: dict[str, str] = chart.render(values, name="nodeagent", namespace=namespace)
    except helm().HelmError as error:
        raise RuntimeError(str(error)) from None
    return {Path(name).name: text for name, text in texts.items()}


def objects(values: Object, *, namespace: str = "default") -> list[Object]:
    """The objects that an installation would create."""
    return [*yaml.safe_load_all(rendered(values, namespace=namespace)["objects.yaml"])]
