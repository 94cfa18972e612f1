"""What every section of the settings is: frozen, without unknown names; and units that several of them use."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MIB", "Seconds", "Section"]

MIB: Final = 1024 * 1024
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Section(BaseModel):
    """A section of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
