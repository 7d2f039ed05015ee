"""Identifiers and the partition they carry.

The one idea: whoever holds an id knows its partition. A flow instance's partition is the low bits of its
UUID; a child flow and every timer are minted into the partition of their root. A key that is no flow id (a
correlation key, a business key) is hashed. Anybody may import this module.
"""

from __future__ import annotations

from hashlib import blake2b
from uuid import UUID

from uuid_utils.compat import uuid7

__all__ = [
    "DEFAULT_PARTITION_COUNT",
    "MAXIMUM_PARTITION_COUNT",
    "MINIMUM_PARTITION_COUNT",
    "hash_key",
    "lock_key",
    "new_flow_instance_id",
    "new_timer_id",
    "partition_of",
    "partition_of_key",
]

DEFAULT_PARTITION_COUNT = 256
MINIMUM_PARTITION_COUNT = 16
MAXIMUM_PARTITION_COUNT = 4096  # 2**12: the number of low bits that a child id takes from its root

_ROOT_BITS = MAXIMUM_PARTITION_COUNT - 1


def new_flow_instance_id(root_id: UUID | None = None) -> UUID:
    """Returns a new time-ordered id (UUID version 7), in the partition of `root_id` when one is given.

    A child takes the root's low 12 bits, so a flow and all its descendants share a partition at any partition
    count.
    """
    minted = uuid7()
    return minted if root_id is None else _with_low_bits(minted, root_id)


def new_timer_id(flow_instance_id: UUID, idempotency_key: str | None = None) -> UUID:
    """Returns a timer id in the partition of its flow instance.

    Without a key it is new and time-ordered; with one, it is always the same for one flow and key.
    """
    if idempotency_key is None:
        return _with_low_bits(uuid7(), flow_instance_id)
    digest = blake2b(idempotency_key.encode(), key=flow_instance_id.bytes, digest_size=16).digest()
    return _with_low_bits(_version_8(int.from_bytes(digest, "big")), flow_instance_id)


def partition_of(flow_instance_id: UUID, partition_count: int) -> int:
    """Returns the partition of a flow instance (or timer): the low bits of the UUID, modulo `partition_count`."""
    return flow_instance_id.int & (partition_count - 1)


def partition_of_key(key: str, partition_count: int) -> int:
    """Returns the partition of a text key: `hash_key` modulo `partition_count`."""
    return hash_key(key) & (partition_count - 1)


def hash_key(key: str) -> int:
    """Returns the documented, stable, unsigned 64-bit hash of a text key.

    It is BLAKE2b with an 8-byte digest over the UTF-8 bytes, read big endian; the same on every machine and
    version.
    """
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def lock_key(schema: str | None, kind: str, name: str) -> int:
    """Returns the signed 64-bit number of an advisory lock.

    It is `hash_key` of the schema, the kind of lock and the name, so that two installations in one database,
    and two kinds of locks, do not meet.
    """
    unsigned = hash_key(f"cascade_state/{schema or ''}/{kind}/{name}")
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned


def _with_low_bits(minted: UUID, source: UUID) -> UUID:
    return UUID(int=(minted.int & ~_ROOT_BITS) | (source.int & _ROOT_BITS))


def _version_8(value: int) -> UUID:
    """Returns a UUID of the version for custom contents; `UUID(version=8)` needs Python 3.14."""
    return UUID(int=(value & ~(0xF << 76) & ~(0x3 << 62)) | (0x8 << 76) | (0x2 << 62))
