"""Colours and axes shared by all figures."""

from __future__ import annotations

REAL = "#1f5fa8"
SYNTHETIC = "#d2601f"
BASELINES = ("#5a6472", "#7a4fa3", "#2f8f6b")
INK, SOFT, LINE = "#17202b", "#5b6675", "#dfe4ea"

FIGURE_STYLE = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
}


def new_figure(width_in: float, height_in: float):
    """A matplotlib figure that no window system and no global state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def styled(draw):
    """Decorator: draw with `FIGURE_STYLE` in force."""
    from functools import wraps

    @wraps(draw)
    def wrapper(*args, **kwargs):
        import matplotlib as mpl

        with mpl.rc_context(dict(FIGURE_STYLE)):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return wrapper
