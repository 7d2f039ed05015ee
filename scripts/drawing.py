"""A few shapes of SVG, for the generated pictures. They carry their own light ground, so they read on any page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

INK = "#1f2937"
FAINT = "#6b7280"
LINE = "#94a3b8"
GROUND = "#ffffff"
FILL = "#f1f5f9"
ACCENT = "#3f51b5"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


@dataclass
class Drawing:
    """An SVG picture, made shape by shape; coordinates are in pixels from the upper left corner."""

    width: int
    height: int
    title: str
    _shapes: list[str] = field(default_factory=list)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = FILL,
        stroke: str = LINE,
        radius: float = 6,
    ) -> None:
        """Draws a rectangle."""
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 13,
        colour: str = INK,
        anchor: str = "start",
        weight: str = "normal",
        style: str = "normal",
        halo: bool = False,
    ) -> None:
        """Writes one line; `y` is its base line. A halo keeps it readable over lines."""
        behind = f' paint-order="stroke" stroke="{GROUND}" stroke-width="5" stroke-linejoin="round"' if halo else ""
        self._shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}" font-style="{style}"{behind}>{escape(words)}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], *, colour: str = LINE, dashed: bool = False) -> None:
        """Draws straight lines from point to point."""
        self.path("M" + " L".join(f"{x:g},{y:g}" for x, y in points), colour=colour, dashed=dashed)

    def path(self, path: str, *, colour: str = LINE, dashed: bool = False, arrow: bool = False) -> None:
        """Draws a path in SVG's notation, with an arrow head at its end if asked."""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        head = ' marker-end="url(#arrow)"' if arrow else ""
        self._shapes.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}{head}/>')

    def svg(self) -> str:
        """Returns the picture's text."""
        shapes = "\n".join(self._shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family={quoteattr(_FONT)} role="img" '
            f"aria-label={quoteattr(self.title)}>\n"
            f"<title>{escape(self.title)}</title>\n"
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
            f'orient="auto-start-reverse"><path d="M0,0 L10,5 L0,10 z" fill="{FAINT}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="10" fill="{GROUND}"/>\n'
            f"{shapes}\n</svg>\n"
        )
