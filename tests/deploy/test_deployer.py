"""Deploying: once, again, after a failure in the middle, on the wrong chain, without money, without a chain."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from efedllm.chain import Chain, Deployment, keystore
from efedllm.chain.artifacts import CONTRACTS
from efedllm.errors import ChainError, ConfigError
from efedllm_deploy.deployer import DeployStep, deploy_contracts
from efedllm_deploy.local import dev_account, free_port
from efedllm_deploy.plan import ADMINISTERED
from efedllm_deploy.profile import Profile

LOCAL = Profile.load("local")


class _StopHereError(Exception):
    pass


async def test_deploys_in_order_and_ties_the_roles(ganache: str, tmp_path: Path) -> None:
    done = await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path)
    assert [step.name for step in done.steps[: len(CONTRACTS)]] == list(CONTRACTS)
    assert done.path == tmp_path / "1337.json"
    assert Deployment.load(done.path) == done.deployment
    assert not (tmp_path / "1337.partial.json").exists()
    async with await Chain.connect(ganache, done.deployment) as chain:
        slasher = await chain.contracts.stake_vault.slasher_role()
        minter = await chain.contracts.efed_token.minter_role()
        committee = await chain.contracts.seat_registry.committee_role()
        assert await chain.contracts.seat_registry.has_role(committee, chain.address("VerifierCommittee"))
        assert await chain.contracts.stake_vault.has_role(slasher, chain.address("VerifierCommittee"))
        assert await chain.contracts.efed_token.has_role(minter, chain.address("RewardPool"))
        dispute = await chain.contracts.verifier_committee.dispute_role()
        assert await chain.contracts.verifier_committee.has_role(dispute, chain.address("DisputeGame"))
        assert await chain.contracts.stake_vault.has_role(slasher, chain.address("DisputeGame"))
        assert await chain.contracts.dispute_game.slash_bps() == LOCAL.disputes.slash_bps
        assert await chain.contracts.dispute_game.reward_bps() == LOCAL.disputes.reward_bps
        assert await chain.token_balance(dev_account().address) == LOCAL.token.initial_supply
        assert (await chain.contracts.verifier_committee.params()).theta == LOCAL.committee.theta
        assert (await chain.contracts.seat_registry.terms()).seat_stake == LOCAL.committee.seat_stake
        assert (await chain.contracts.reward_pool.params()).phi_bps == LOCAL.rewards.phi_bps
        assert await chain.contracts.session_escrow.grace() == LOCAL.escrow.grace
        assert (await chain.now()).epoch == await chain.contracts.commitment_log.current_epoch()


async def test_second_run_sends_nothing(anvil: str, tmp_path: Path) -> None:
    first = await deploy_contracts(anvil, dev_account(), LOCAL, tmp_path)
    before = first.path.read_bytes()
    second = await deploy_contracts(anvil, dev_account(), LOCAL, tmp_path)
    assert all(step.skipped for step in second.steps)
    assert (second.gas, second.deployment) == (0, first.deployment)
    assert first.path.read_bytes() == before


@pytest.mark.parametrize("stop_after", ["EfedToken", "VerifierCommittee", "RewardPool", "StakeVault: SLASHER"])
async def test_resumes_where_it_failed(ganache: str, tmp_path: Path, stop_after: str) -> None:
    seen: list[DeployStep] = []

    def fail(step: DeployStep) -> None:
        seen.append(step)
        if step.name == stop_after:
            raise _StopHereError

    with pytest.raises(_StopHereError):
        await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path, on_step=fail)
    assert not (tmp_path / "1337.json").exists()
    done = await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path)
    skipped = [step.name for step in done.steps if step.skipped]
    assert skipped == [step.name for step in seen]
    for step in seen[:8]:
        assert done.deployment.contracts[step.name].address == step.detail


async def test_resumes_with_its_own_genesis_and_treasury(ganache: str, tmp_path: Path) -> None:
    treasury = dev_account(9).address

    def fail(step: DeployStep) -> None:
        if step.name == "NodeRegistry":
            raise _StopHereError

    with pytest.raises(_StopHereError):
        await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path, on_step=fail, treasury=treasury)
    genesis = json.loads((tmp_path / "1337.partial.json").read_text())["genesis"]
    done = await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path)
    assert done.deployment.genesis == genesis
    async with await Chain.connect(ganache, done.deployment) as chain:
        assert await chain.contracts.reward_pool.treasury() == treasury
        assert await chain.contracts.node_registry.genesis() == await chain.contracts.reward_pool.genesis() == genesis


async def test_unfinished_deployment_of_another_account_is_not_touched(ganache: str, tmp_path: Path) -> None:
    def fail(step: DeployStep) -> None:
        if step.name == "StakeVault":
            raise _StopHereError

    with pytest.raises(_StopHereError):
        await deploy_contracts(ganache, dev_account(0), LOCAL, tmp_path, on_step=fail)
    with pytest.raises(ConfigError) as caught:
        await deploy_contracts(ganache, dev_account(1), LOCAL, tmp_path)
    assert caught.value.code == "state-differs"
    (tmp_path / "1337.partial.json").write_text("{")
    with pytest.raises(ConfigError) as caught:
        await deploy_contracts(ganache, dev_account(0), LOCAL, tmp_path)
    assert caught.value.code == "bad-state"


async def test_code_on_chain_is_compared(ganache: str, tmp_path: Path) -> None:
    done = await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path)
    contracts = dict(done.deployment.contracts)
    contracts["EfedToken"] = contracts["EfedToken"].model_copy(update={"address": contracts["StakeVault"].address})
    done.deployment.model_copy(update={"contracts": contracts}).save(done.path)
    with pytest.raises(ChainError) as caught:
        await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path)
    assert caught.value.code == "code-mismatch"
    assert "EfedToken" in caught.value.message


async def test_other_parameters_are_another_network(ganache: str, tmp_path: Path) -> None:
    await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path)
    with pytest.raises(ConfigError) as caught:
        await deploy_contracts(ganache, dev_account(), Profile.load("testnet"), tmp_path)
    assert caught.value.code == "deployment-differs"
    assert "--out" in caught.value.hint


async def test_file_of_a_chain_that_was_started_afresh_is_set_aside(ganache: str, tmp_path: Path) -> None:
    done = await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path)
    gone = {
        name: item.model_copy(update={"address": f"0x{index:040x}"})
        for index, (name, item) in enumerate(done.deployment.contracts.items(), start=0xABCDEF)
    }
    stale = done.deployment.model_copy(update={"contracts": gone})
    stale.save(done.path)
    again = await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path)
    assert len([step for step in again.steps if not step.skipped]) == 15
    assert Deployment.load(tmp_path / f"1337.{stale.genesis}.old.json") == stale


async def test_administration_is_handed_over(ganache: str, tmp_path: Path) -> None:
    owner, heir = dev_account(0).address, dev_account(8).address
    done = await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path, admin=heir)
    again = await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path, admin=heir)
    assert again.gas == 0
    async with await Chain.connect(ganache, done.deployment) as chain:
        for contract in ADMINISTERED:
            assert await chain.call(contract, "hasRole", bytes(32), heir)
            assert not await chain.call(contract, "hasRole", bytes(32), owner)


async def test_wrong_chain_id(ganache: str, tmp_path: Path) -> None:
    with pytest.raises(ChainError) as caught:
        await deploy_contracts(ganache, dev_account(), LOCAL, tmp_path, expected_chain_id=1)
    assert caught.value.code == "wrong-chain"
    assert "is chain 1337, not 1" in caught.value.message
    elsewhere = LOCAL.model_copy(update={"chain_ids": [31337]})
    with pytest.raises(ChainError) as caught:
        await deploy_contracts(ganache, dev_account(), elsewhere, tmp_path)
    assert caught.value.code == "wrong-chain"
    assert not any(os.scandir(tmp_path))


async def test_account_without_money(ganache: str, tmp_path: Path) -> None:
    keystore.create(tmp_path / "k.json", "pw", light=True)
    account = keystore.load(tmp_path / "k.json", "pw")
    with pytest.raises(ChainError) as caught:
        await deploy_contracts(ganache, account, LOCAL, tmp_path / "out")
    assert caught.value.code == "insufficient-funds"
    assert f"{account.address} has 0 ETH" in caught.value.message


async def test_no_chain(tmp_path: Path) -> None:
    with pytest.raises(ChainError) as caught:
        await deploy_contracts(f"http://127.0.0.1:{free_port()}", dev_account(), LOCAL, tmp_path, budget=0.3)
    assert caught.value.code == "rpc-down"


@pytest.mark.parametrize("name", ["local", "testnet", "production"])
def test_shipped_profiles_are_valid(name: str) -> None:
    profile = Profile.load(name)
    assert profile.name == name
    # Paying oneself must not earn more than it burns, except where tokens are worth nothing.
    assert name == "local" or name == "testnet" or profile.rewards.phi_bps <= profile.escrow.fee_bps


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('cap = "1000000000"', 'cap = "1"', "initial_supply must not exceed"),
        ("theta = 300000", "theta = 500000", "theta must not exceed reentry"),
        ("fee_bps = 300", "fee_bps = 10001", "escrow.fee_bps"),
        ("grace = 30", "grasse = 30", "escrow.gra"),
        ('seat_stake = "100"', 'seat_stake = "lots"', "seat_stake"),
        ("[clock]", "[clock", "TOML"),
        ("servers_bps = 7000", "servers_bps = 9000", "must not exceed 10000"),
    ],
)
def test_bad_profiles_say_what_is_wrong(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = (Path("deploy/efedllm_deploy/profiles/local.toml")).read_text()
    assert old in text
    (tmp_path / "p.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        Profile.load(str(tmp_path / "p.toml"))
    assert caught.value.code == "bad-profile"
    assert told in caught.value.message


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        Profile.load("mainnet")
    assert "local, production, testnet" in caught.value.hint
