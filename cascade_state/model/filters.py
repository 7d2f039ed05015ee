"""Which flow instances a list, count, claim or purge is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from cascade_state.errors import InvalidArgument
from cascade_state.model import documents
from cascade_state.model.arguments import (
    check_count,
    check_key,
    check_kind,
    check_optional_instant,
    check_optional_key,
    check_uuid,
)
from cascade_state.model.flow_status import FlowStatus
from cascade_state.types import JsonObject

__all__ = ["FlowInstanceFilter", "check_statuses", "checked_filter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowInstanceFilter:
    """Chooses flow instances; what is None does not matter. Ranges are from (inclusive) and to (exclusive).

    `search_attributes` chooses those whose attributes contain it (as `@>` does for jsonb).
    """

    flow_id: str | None = None
    flow_version: int | None = None
    statuses: Iterable[FlowStatus] | None = None
    parent_id: UUID | None = None
    business_key_prefix: str | None = None
    search_attributes: JsonObject | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    updated_from: datetime | None = None
    updated_to: datetime | None = None
    completed_from: datetime | None = None
    completed_to: datetime | None = None
    search_text: str | None = field(default=None, init=False, repr=False, compare=False)

    def checked(self) -> FlowInstanceFilter:
        """Returns the filter in its one canonical form; equal filters have equal reprs (cursors are bound to it).

        Raises:
            InvalidArgument: Naming the field.
        """
        checked = replace(
            self,
            flow_id=check_optional_key(self.flow_id, "flow_id"),
            flow_version=None if self.flow_version is None else check_count(self.flow_version, "flow_version"),
            statuses=None if self.statuses is None else check_statuses(self.statuses),
            parent_id=None if self.parent_id is None else check_uuid(self.parent_id, "parent_id"),
            business_key_prefix=None
            if not self.business_key_prefix
            else check_key(self.business_key_prefix, "business_key_prefix"),
            created_from=check_optional_instant(self.created_from, "created_from"),
            created_to=check_optional_instant(self.created_to, "created_to"),
            updated_from=check_optional_instant(self.updated_from, "updated_from"),
            updated_to=check_optional_instant(self.updated_to, "updated_to"),
            completed_from=check_optional_instant(self.completed_from, "completed_from"),
            completed_to=check_optional_instant(self.completed_to, "completed_to"),
        )
        if self.search_attributes:
            text = documents.dump_search_attributes(self.search_attributes, "search_attributes")
            canonical = documents.dump_canonical(documents.load(text), "search_attributes")
            object.__setattr__(checked, "search_attributes", documents.load(canonical))
            object.__setattr__(checked, "search_text", text)
        else:
            object.__setattr__(checked, "search_attributes", None)
        return checked


def checked_filter(filter: FlowInstanceFilter | None) -> FlowInstanceFilter:
    """Returns a filter in its canonical form; None chooses all."""
    return (FlowInstanceFilter() if filter is None else check_kind(filter, FlowInstanceFilter, "filter")).checked()


def check_statuses(statuses: Iterable[FlowStatus]) -> tuple[FlowStatus, ...]:
    """Returns the statuses without repetition, in the order of the enumeration; names are accepted for members."""
    try:
        chosen = {FlowStatus(status) for status in statuses}
    except (ValueError, TypeError):
        raise InvalidArgument(argument="statuses", reason="must be flow statuses") from None
    return tuple(status for status in FlowStatus if status in chosen)
