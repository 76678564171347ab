"""Cells as points: exported from results, written as challenges take them, scored against true points."""

from .evaluating import PointCounts, PointScores, score_points
from .formats import FORMATS, Format, Lyon19Template, Neutral, PointsJson, Template, TemplateTable, format_named
from .table import Detections, from_results, read_points, write_neutral

__all__ = [
    "FORMATS",
    "Detections",
    "Format",
    "Lyon19Template",
    "Neutral",
    "PointCounts",
    "PointScores",
    "PointsJson",
    "Template",
    "TemplateTable",
    "format_named",
    "from_results",
    "read_points",
    "score_points",
    "write_neutral",
]
