"""HELLO and WELCOME: both sides learn who they talk to before anything else is sent."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from efedllm.commitments.eip712 import Domain
from efedllm.commitments.hashing import as_address
from efedllm.commitments.messages import Hello
from efedllm.commitments.signing import Signer, check
from efedllm.errors import ProtocolError
from efedllm.wire.connection import Peer
from efedllm.wire.frames import Frame
from efedllm.wire.messages import PROTOCOL_VERSION, ErrorMsg, HelloMsg, Role, WelcomeMsg, parse


@dataclass(frozen=True)
class Identity:
    """Who we are. A node gives its address and its signer; a client gives neither. `domain` is the EFL domain."""

    domain: Domain
    node: str | None = None
    signer: Signer | None = None

    @property
    def role(self) -> Role:
        """node or client."""
        return "client" if self.node is None else "node"


@dataclass(frozen=True)
class Remote:
    """Who the other side proved to be; `node` and `signer` are None for a client.

    The proof says that the holder of `signer` speaks; that `signer` is registered for `node` is for the chain to say.
    """

    role: Role
    node: str | None
    signer: str | None


async def handshake(
    peer: Peer,
    identity: Identity,
    *,
    expect_node: str | None = None,
    expect_signer: str | None = None,
    timeout: float = 10.0,  # noqa: ASYNC109  (the error names the peer)
) -> Remote:
    """Exchange HELLO, prove ourselves when we are a node, check the other side when it is one.

    Raises ProtocolError (after telling the other side and closing): "wrong-chain", "wrong-version", "wrong-node",
    "bad-signature", "timeout", "bad-frame", "bad-message", or the error the other side reports.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _exchange(peer, identity, expect_node, expect_signer)
    except TimeoutError:
        error = ProtocolError("timeout", f"{peer.name} did not say hello within {timeout} s.", "Try again.")
        await peer.fail(error)
        raise error from None
    except _Reported as reported:
        await peer.close()
        raise reported.error from None
    except ProtocolError as error:
        await peer.fail(error)
        raise


class _Reported(Exception):  # noqa: N818  (not an error of ours: it carries the other side's)
    def __init__(self, error: ProtocolError) -> None:
        super().__init__(error)
        self.error = error


def _checked(frame: Frame) -> Frame:
    message = parse(frame)
    if isinstance(message, ErrorMsg):
        raise _Reported(message.to_error())
    return frame


async def _exchange(peer: Peer, identity: Identity, expect_node: str | None, expect_signer: str | None) -> Remote:
    domain = identity.domain
    challenge = os.urandom(32)
    await peer.send(HelloMsg(domain.chain_id, identity.role, identity.node, challenge).to_frame())
    theirs = HelloMsg.from_frame(_checked(await peer.recv()))
    if theirs.protocol != PROTOCOL_VERSION:
        raise ProtocolError(
            "wrong-version",
            f"{peer.name} speaks protocol {theirs.protocol}, this is {PROTOCOL_VERSION}.",
            "Update the older one.",
        )
    if theirs.chain_id != domain.chain_id:
        raise ProtocolError(
            "wrong-chain",
            f"{peer.name} works on chain {theirs.chain_id}, this is chain {domain.chain_id}.",
            "Check the deployment file on both sides.",
        )
    if identity.node is not None and identity.signer is not None:
        signature = identity.signer.sign(Hello(identity.node, theirs.challenge).digest(domain))
        welcome = WelcomeMsg(domain.chain_id, identity.node, identity.signer.address, signature)
        await peer.send(welcome.to_frame())
    if theirs.role == "client":
        if expect_node is not None:
            raise ProtocolError("wrong-node", f"{peer.name} is no node.", "Check the endpoint in the registry.")
        return Remote("client", None, None)
    proof = WelcomeMsg.from_frame(_checked(await peer.recv()))
    if proof.chain_id != domain.chain_id or proof.node != theirs.address:
        raise ProtocolError("wrong-node", f"{peer.name} contradicts its own hello.")
    if expect_node is not None and proof.node != as_address(expect_node):
        raise ProtocolError(
            "wrong-node",
            f"{peer.name} is node {proof.node}, expected {expect_node}.",
            "Check the endpoint in the registry.",
        )
    if expect_signer is not None and proof.signer != as_address(expect_signer):
        raise ProtocolError("wrong-node", f"{peer.name} signs as {proof.signer}, expected {expect_signer}.")
    check(Hello(proof.node, challenge).digest(domain), proof.signature, proof.signer)
    return Remote("node", proof.node, proof.signer)
