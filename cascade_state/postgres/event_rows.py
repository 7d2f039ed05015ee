"""From records to flow events, and the positions of the feed.

A position is (transaction id, flow instance id, sequence), as opaque text.
"""

from __future__ import annotations

from uuid import UUID

from cascade_state.errors import InvalidArgument, SerializationError
from cascade_state.model.documents import load
from cascade_state.model.events import FlowEvent
from cascade_state.model.lists import decode_cursor, encode_cursor
from cascade_state.postgres.direct import Record

__all__ = ["BEGINNING", "decode_feed_position", "encode_feed_position", "event_from_record"]

_SUBJECT = "events"

# In front of every event: a transaction id (as text), a flow instance id and a sequence.
BEGINNING = ("0", UUID(int=0), 0)

_XID_LIMIT = 1 << 64
_BIGINT_LIMIT = 1 << 63


def event_from_record(record: Record) -> FlowEvent:
    """Returns the event of a record made of `event_columns`.

    Raises:
        SerializationError: Its payload cannot be decoded.
    """
    flow_instance_id: UUID = record["flow_instance_id"]
    sequence: int = record["sequence"]
    try:
        payload = load(record["payload"])
    except (ValueError, RecursionError) as error:
        raise SerializationError(
            entity="flow event",
            key=f"{flow_instance_id} sequence {sequence}",
            reason=f"{type(error).__name__} while decoding",
        ) from error
    return FlowEvent(
        flow_instance_id=flow_instance_id,
        sequence=sequence,
        event_type=record["event_type"],
        payload=payload,
        recorded_at=record["recorded_at"],
        position=encode_feed_position(record["recorded_xid"], flow_instance_id, sequence),
    )


def encode_feed_position(xid: str, flow_instance_id: UUID, sequence: int) -> str:
    """Returns a position; the transaction id comes as text."""
    return encode_cursor(_SUBJECT, (int(xid), flow_instance_id.hex, sequence))


def decode_feed_position(position: str) -> tuple[str, UUID, int]:
    """Returns the transaction id (as text), flow instance id and sequence of a position.

    Raises:
        InvalidArgument: It is no position of this feed.
    """
    refused = InvalidArgument(argument="after", reason="is not a position of this feed")
    try:
        key = decode_cursor(position, _SUBJECT, (int, str, int))
        assert key is not None  # noqa: S101 - only None gives None
        xid, flow_instance_id, sequence = key
        parsed = UUID(hex=flow_instance_id)
    except ValueError:  # an InvalidArgument is one, too
        raise refused from None
    if not (0 <= xid < _XID_LIMIT and 0 <= sequence < _BIGINT_LIMIT):
        raise refused
    return str(xid), parsed, sequence
