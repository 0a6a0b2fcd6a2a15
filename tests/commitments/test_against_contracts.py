"""What Python hashes and signs is what the deployed contracts compute."""

from __future__ import annotations

from efedllm.chain import Chain
from efedllm.chain.contracts import ModelParams
from efedllm.commitments.hashing import as_address, keccak
from efedllm.commitments.merkle import WeightsTree
from efedllm.commitments.messages import SessionKey, Voucher
from efedllm.commitments.signing import Signer

NODES = tuple(as_address("0x" + bytes([i] * 20).hex()) for i in range(1, 4))
KEY = SessionKey(
    client=Signer(b"\x01" * 32).address,
    signer=Signer(b"\x02" * 32).address,
    model_id=keccak(b"model"),
    nonce=2**64 - 1,
    expiry=2**40 - 1,
    max_price_per_ktok=2**64 - 1,
    nodes=NODES,
    shares=(1, 9998, 1),
)


async def test_session_ids(chain: Chain) -> None:
    chain_id, escrow = chain.escrow_domain
    for count, shares in ((1, (10_000,)), (2, (4000, 6000)), (3, KEY.shares)):
        key = SessionKey(KEY.client, KEY.signer, KEY.model_id, 1, 2, 3, NODES[:count], shares)
        assert await chain.contracts.session_escrow.session_id_of(key) == key.session_id(chain_id, escrow)
    assert await chain.contracts.session_escrow.session_id_of(KEY) == KEY.session_id(chain_id, escrow)


async def test_voucher_digests(chain: Chain) -> None:
    chain_id, escrow = chain.escrow_domain
    for cumulative, tokens in ((0, 0), (2**128 - 1, 2**64 - 1), (10**18, 1000)):
        voucher = Voucher(KEY.session_id(chain_id, escrow), cumulative, tokens, keccak(b"receipts"))
        assert await chain.contracts.session_escrow.voucher_digest(voucher) == voucher.digest(chain_id, escrow)


async def test_weight_proofs(chain: Chain) -> None:
    leaves = [keccak(bytes([i])) for i in range(7)]
    tree = WeightsTree(leaves)
    params = ModelParams(
        weights_root=tree.root,
        layers=4,
        hidden=8,
        rank_bps=10_000,
        quant=0,
        profile=0,
        constants_hash=bytes(32),
        certificate_hash=bytes(32),
    )
    models = chain.contracts.model_registry
    done = await models.register(bytes(32), params, keccak(b"manifest"), "")
    model_id = done.event("ModelRegistered").args["modelId"]
    for i, leaf in enumerate(leaves):
        assert await models.verify_tensor(model_id, leaf, tree.proof(i))
        assert not await models.verify_tensor(model_id, keccak(leaf), tree.proof(i))
