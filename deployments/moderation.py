"""OpenAI's moderation categories, and how a classifier's labels stand for them.

Used by `spec` and `types`, and by the codec in `serve_app`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Category = Literal[
    "hate",
    "hate/threatening",
    "harassment",
    "harassment/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
]
CATEGORIES: tuple[str, ...] = get_args(Category)  # of OpenAI's moderations


@dataclass(frozen=True, slots=True)
class Moderation:
    """A label's category, and the score from which a category is flagged."""

    labels: Mapping[str, str]
    threshold: float
