"""Prometheus, NVIDIA's exporter and Grafana on the nodes themselves."""

from __future__ import annotations

from pydantic import Field

from fleet.settings.images import PinnedImage
from fleet.settings.section import Section


class Observability(Section):
    """What watches each node, on its own loopback. A change of it touches nothing that serves."""

    enabled: bool = False
    """Run them."""
    prometheus_image: PinnedImage = "prom/prometheus:v3.5.0"
    """Keeps the metrics and judges the alert rules."""
    grafana_image: PinnedImage = "grafana/grafana:12.4.0"
    """Shows the dashboard."""
    dcgm_image: PinnedImage = "nvcr.io/nvidia/k8s/dcgm-exporter:4.6.0-4.8.3-distroless"
    """Tells of the GPUs: use, temperature, power, errors. DCGM's release and the exporter's."""
    retention_days: int = Field(default=15, ge=1, le=400)
    """Days that metrics are kept; a node's take some 10 MB a day."""
