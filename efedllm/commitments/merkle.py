"""Merkle trees: the index-bound tree of boundaries and batches, and OpenZeppelin's sorted-pair tree for weights."""

from __future__ import annotations

from collections.abc import Sequence

from efedllm.commitments.hashing import keccak
from efedllm.errors import ProtocolError
from efedllm.kernels.keccak import keccak_library

NODE = b"\x01"
PAD = keccak(b"\x03")


def _depth(count: int) -> int:
    return (count - 1).bit_length() if count > 1 else 0


def merkle(leaves: Sequence[bytes]) -> bytes:
    """Root over 32-byte leaves, padded to a power of two with K(0x03); K(0x03) when there are none.

    Nodes are K(0x01 | left | right). The count is not in this root: `leaves.boundary_root` and `leaves.batch_root`
    bind it.
    """
    if not leaves:
        return PAD
    native = keccak_library()
    if native is not None:
        return native.merkle(b"".join(leaves), PAD)
    level = list(leaves)
    pad = PAD
    while len(level) > 1:
        if len(level) % 2:
            level.append(pad)
        level = [keccak(NODE + level[i] + level[i + 1]) for i in range(0, len(level), 2)]
        # The root of an all-pad subtree of the next height stands for every absent node there.
        pad = keccak(NODE + pad + pad)
    return level[0]


def proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Siblings from the leaf at `index` up to the root. IndexError when there is no such leaf."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    path: list[bytes] = []
    level = list(leaves)
    pad = PAD
    while len(level) > 1:
        if len(level) % 2:
            level.append(pad)
        path.append(level[index ^ 1])
        level = [keccak(NODE + level[i] + level[i + 1]) for i in range(0, len(level), 2)]
        pad = keccak(NODE + pad + pad)
        index >>= 1
    return path


def root_of(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root under which `leaf` is number `index` of `count` leaves by this path. None for a pad position or a path
    of another length.
    """
    if not 0 <= index < count or len(path) != _depth(count):
        return None
    if len(leaf) != 32 or any(len(sibling) != 32 for sibling in path):
        return None
    node = leaf
    for sibling in path:
        node = keccak(NODE + sibling + node if index & 1 else NODE + node + sibling)
        index >>= 1
    return node


def verify(root: bytes, leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bool:
    """Whether `leaf` is number `index` of the `count` leaves under `root`. False for a pad position or a path of
    another length.
    """
    return root_of(leaf, index, count, path) == root


def _pair(a: bytes, b: bytes) -> bytes:
    return keccak(a + b if a < b else b + a)


class WeightsTree:
    """The tree OpenZeppelin's `StandardMerkleTree.of` builds over already double-hashed leaves; `MerkleProof.verify`
    accepts its proofs.

    Leaves are sorted by hash inside, so the root does not depend on their order; `proof(i)` counts in the order given.
    Raises ProtocolError("empty-tree") without leaves.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise ProtocolError("empty-tree", "A weights tree needs at least one leaf.")
        if any(len(leaf) != 32 for leaf in leaves):
            raise ProtocolError("bad-message", "Every leaf must be 32 bytes.")
        n = len(leaves)
        order = sorted(range(n), key=lambda i: leaves[i])
        self._nodes: list[bytes] = [b""] * (2 * n - 1)
        self._slot = [0] * n
        for rank, i in enumerate(order):
            slot = 2 * n - 2 - rank
            self._nodes[slot] = leaves[i]
            self._slot[i] = slot
        for slot in range(n - 2, -1, -1):
            self._nodes[slot] = _pair(self._nodes[2 * slot + 1], self._nodes[2 * slot + 2])

    def __len__(self) -> int:
        return len(self._slot)

    @property
    def root(self) -> bytes:
        """The 32-byte root."""
        return self._nodes[0]

    def proof(self, i: int) -> list[bytes]:
        """Siblings for leaf `i`, bottom up. IndexError when there is no such leaf."""
        if not 0 <= i < len(self._slot):
            raise IndexError(f"leaf {i} of {len(self._slot)}")
        slot = self._slot[i]
        path: list[bytes] = []
        while slot:
            path.append(self._nodes[slot + 1 if slot % 2 else slot - 1])
            slot = (slot - 1) // 2
        return path


def verify_weights(root: bytes, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """What OpenZeppelin's `MerkleProof.verify(proof, root, leaf)` returns."""
    node = leaf
    for sibling in proof:
        node = _pair(node, sibling)
    return node == root
