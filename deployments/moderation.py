"""OpenAI's moderation categories, and how a classifier's labels stand for them.

Used by `spec` and `types`, and by the codec in `serve_app`.
"""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

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


class Moderation(BaseModel):
    """Makes a text classifier answer OpenAI's moderations: `moderation` of its entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: dict[str, Category] = Field(min_length=1, description="the model's labels to OpenAI's categories")
    threshold: float = Field(default=0.5, gt=0, le=1, description="score from which a category is flagged")
