from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_state.ids import hash_key, new_flow_instance_id, new_timer_id, partition_of, partition_of_key

COUNTS = st.sampled_from([16, 32, 64, 128, 256, 512, 1024, 2048, 4096])


def test_ids_are_version_7_and_ascend() -> None:
    made = [new_flow_instance_id() for _ in range(1_000)]
    assert all(identity.version == 7 for identity in made)
    assert made == sorted(set(made))


@given(st.uuids(), COUNTS)
def test_a_child_and_a_timer_share_the_partition(root: UUID, count: int) -> None:
    partition = partition_of(root, count)
    assert 0 <= partition < count
    assert partition_of(new_flow_instance_id(root), count) == partition
    assert partition_of(new_timer_id(root), count) == partition
    assert partition_of(new_timer_id(root, "key"), count) == partition


def test_children_of_one_root_differ() -> None:
    root = new_flow_instance_id()
    assert len({new_flow_instance_id(root) for _ in range(1_000)}) == 1_000


@given(st.uuids(), st.uuids(), st.text(min_size=1), st.text(min_size=1))
def test_an_idempotency_key_names_one_timer_of_one_flow(flow: UUID, other: UUID, key: str, another: str) -> None:
    try:
        (key + another).encode()
    except UnicodeEncodeError:
        return
    timer_id = new_timer_id(flow, key)
    assert new_timer_id(flow, key) == timer_id
    assert timer_id.version == 8
    assert (new_timer_id(other, key) == timer_id) is (other == flow)
    assert (new_timer_id(flow, another) == timer_id) is (another == key)


@pytest.mark.parametrize(
    ("key", "hashed"),
    [  # the documented hash: BLAKE2b, 8 bytes, big endian, over UTF-8; other languages must find the same
        ("", 0xE4A6A0577479B2B4),
        ("parcel-77", 0xC2ED06CD427E6667),
        ("ключ", 0x4CD42D91D185C820),
    ],
)
def test_the_hash_of_a_key_is_the_documented_one(key: str, hashed: int) -> None:
    assert hash_key(key) == hashed
    assert partition_of_key(key, 256) == hashed % 256
    assert partition_of_key(key, 16) == hashed % 16


def test_the_version_and_variant_survive_the_root_bits() -> None:
    child = new_flow_instance_id(UUID(int=2**128 - 1))
    assert (child.version, child.variant) == (7, "specified in RFC 4122")
    assert partition_of(child, 4096) == 4095
