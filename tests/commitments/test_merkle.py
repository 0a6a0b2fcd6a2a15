"""Trees: every leaf proves itself, nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efedllm.commitments.hashing import keccak
from efedllm.commitments.merkle import PAD, WeightsTree, merkle, proof, verify, verify_weights
from efedllm.errors import ProtocolError
from tests.commitments.commitment_strategies import h32

leaf_lists = st.lists(h32, min_size=1, max_size=40)


def reference(leaves: list[bytes]) -> bytes:
    """The definition read literally: pad to a power of two, then hash pairs."""
    size = 1
    while size < len(leaves):
        size *= 2
    level = leaves + [keccak(b"\x03")] * (size - len(leaves))
    while len(level) > 1:
        level = [keccak(b"\x01" + a + b) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


@given(leaf_lists)
def test_root_is_the_padded_definition(leaves: list[bytes]) -> None:
    assert merkle(leaves) == reference(leaves)


def test_no_leaves_and_one_leaf() -> None:
    assert merkle([]) == PAD == keccak(b"\x03")
    assert merkle([b"\x07" * 32]) == b"\x07" * 32


@given(leaf_lists, st.data())
def test_every_leaf_proves_its_place_and_no_other(leaves: list[bytes], data: st.DataObject) -> None:
    root, count = merkle(leaves), len(leaves)
    i = data.draw(st.integers(0, count - 1))
    path = proof(leaves, i)
    assert verify(root, leaves[i], i, count, path)
    for j in range(count):
        if leaves[j] != leaves[i]:
            assert not verify(root, leaves[j], i, count, path)
            assert not verify(root, leaves[i], j, count, proof(leaves, j))


@given(leaf_lists, st.data())
def test_any_changed_byte_breaks_a_proof(leaves: list[bytes], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(leaves) - 1))
    path = proof(leaves, i)
    parts = [merkle(leaves), leaves[i], *path]
    which = data.draw(st.integers(0, len(parts) - 1))
    changed = bytearray(parts[which])
    changed[data.draw(st.integers(0, 31))] ^= data.draw(st.integers(1, 255))
    parts[which] = bytes(changed)
    assert not verify(parts[0], parts[1], i, len(leaves), parts[2:])


@given(st.integers(1, 33))
def test_a_pad_is_not_a_leaf(count: int) -> None:
    leaves = [keccak(bytes([i])) for i in range(count)]
    padded = leaves + [PAD] * ((1 << (count - 1).bit_length()) - count)
    for i in range(count, len(padded)):
        path = proof(padded, i)
        assert verify(merkle(leaves), PAD, i, len(padded), path), "the pad is where the definition puts it"
        assert not verify(merkle(leaves), PAD, i, count, path)


def test_an_inner_node_is_not_a_leaf() -> None:
    leaves = [keccak(bytes([i])) for i in range(4)]
    inner = keccak(b"\x01" + leaves[0] + leaves[1])
    path = proof(leaves, 0)[1:]
    assert verify(merkle(leaves), inner, 0, 2, path), "shorter trees have the same shape: the count must be bound"
    assert not verify(merkle(leaves), inner, 0, 4, path)


def test_the_last_odd_leaf_is_not_duplicated() -> None:
    leaves = [keccak(bytes([i])) for i in range(3)]
    assert merkle(leaves) != merkle([*leaves, leaves[2]])


@pytest.mark.parametrize("index", [-1, 3])
def test_no_proof_for_an_absent_leaf(index: int) -> None:
    leaves = [keccak(bytes([i])) for i in range(3)]
    with pytest.raises(IndexError):
        proof(leaves, index)
    with pytest.raises(IndexError):
        WeightsTree(leaves).proof(index)
    assert not verify(merkle(leaves), leaves[0], index, 3, proof(leaves, 0))


def openzeppelin_root(leaves: list[bytes]) -> bytes:
    """`makeMerkleTree` of @openzeppelin/merkle-tree over sorted leaves, written from its description."""
    ordered = sorted(leaves)
    tree = [b""] * (2 * len(ordered) - 1)
    for i, leaf in enumerate(ordered):
        tree[len(tree) - 1 - i] = leaf
    for i in range(len(tree) - 1 - len(ordered), -1, -1):
        tree[i] = keccak(b"".join(sorted([tree[2 * i + 1], tree[2 * i + 2]])))
    return tree[0]


@given(leaf_lists)
def test_weights_tree_is_openzeppelins_and_order_free(leaves: list[bytes]) -> None:
    tree = WeightsTree(leaves)
    assert len(tree) == len(leaves)
    assert tree.root == openzeppelin_root(leaves) == WeightsTree(leaves[::-1]).root
    for i, leaf in enumerate(leaves):
        assert verify_weights(tree.root, leaf, tree.proof(i))


@given(st.lists(h32, min_size=2, max_size=20, unique=True), st.data())
def test_a_foreign_weight_does_not_verify(leaves: list[bytes], data: st.DataObject) -> None:
    tree = WeightsTree(leaves)
    i = data.draw(st.integers(0, len(leaves) - 1))
    foreign = data.draw(h32.filter(lambda x: x not in leaves))
    assert not verify_weights(tree.root, foreign, tree.proof(i))


def test_openzeppelins_published_example() -> None:
    """The README example of @openzeppelin/merkle-tree: two (address, uint256) leaves, hashed twice."""
    from eth_abi.abi import encode

    values = [
        ("0x1111111111111111111111111111111111111111", 5000000000000000000),
        ("0x2222222222222222222222222222222222222222", 2500000000000000000),
    ]
    leaves = [keccak(keccak(encode(["address", "uint256"], v))) for v in values]
    assert WeightsTree(leaves).root.hex() == "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"


def test_malformed_weights_trees() -> None:
    with pytest.raises(ProtocolError) as caught:
        WeightsTree([])
    assert caught.value.code == "empty-tree"
    with pytest.raises(ProtocolError):
        WeightsTree([bytes(31)])
