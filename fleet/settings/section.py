"""What every section of a stack's configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values never change after loading."""

    # hide_input_in_errors: pydantic's own text must not carry a secret if it ever reaches a log.
    # defer_build: only the whole stack is ever validated, so its parts need no validator of their own.
    # allow_inf_nan: neither is a limit that could be kept.
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True, allow_inf_nan=False
    )
