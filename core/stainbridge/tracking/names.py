"""Names as MLflow allows them, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

VALUE_LIMIT = 6000  # characters of a parameter's value, MLflow 3
TAG_LIMIT = 5000  # characters of a tag's value, the least of the stores

_CUT = " ... (cut; whole in the journal)"


def metric_name(value: str) -> str:
    """Return the name under which MLflow takes a value: "matching/f1@0.50" becomes "matching/f1 at 0.50".

    MLflow allows letters, digits and ``_ - . space /``. "@" becomes " at "; any other character becomes its code point,
    "_x2b_" for "+". `value_name` undoes it.
    """
    # What would read as one of the two replacements is itself replaced.
    safe = re.sub(r"(?<=[ @])at(?=[ @])", "_x61_t", value.replace("_x", "_x5f_x"))
    return re.sub(r"[^\w\-. /@]", lambda odd: f"_x{ord(odd[0]):x}_", safe).replace("@", " at ")


def value_name(metric: str) -> str:
    """Return the name of a value whose `metric_name` is given."""
    return re.sub(r"_x([0-9a-f]+)_", lambda code: chr(int(code[1], 16)), metric.replace(" at ", "@"))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested mapping as one level, keys joined by dots, values as text."""
    pairs: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[f"{prefix}{key}"] = str(value)
    return pairs


def cut(text: str, limit: int) -> str:
    """Return `text` in at most `limit` characters, with a mark where something was cut."""
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT
