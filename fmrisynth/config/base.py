"""The base of every configuration model."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """A frozen model that rejects unknown keys and checks defaults too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class StageConfig(Config):
    """What all stages share."""

    seed: int = Field(0, ge=0, description="Seed of every random number in the stage.")

    def digest(self) -> str:
        """SHA-256 of the resolved values (hexadecimal); equal digests mean equal settings."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
