"""Self-contained HTML reports: page elements, figures from plain arrays, brain maps.

Light to import: matplotlib and nilearn are loaded when something is drawn.
"""

from fmrisynth.report.html import Cards, Element, Figure, Page, Section, Table, Text, Verdicts, render_page, write_page

__all__ = ["Cards", "Element", "Figure", "Page", "Section", "Table", "Text", "Verdicts", "render_page", "write_page"]
