"""How the reports' figures look."""

from typing import Any

import plotly.graph_objects as go


def figure_of(x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure with its axes' titles."""
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        xaxis_title=x,
        yaxis_title=y,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        height=420,
        legend={"orientation": "h", "y": 1.08},
        **layout,
    )
    return figure
