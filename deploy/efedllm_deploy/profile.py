"""Deployment profiles: every parameter of a network, checked before anything is sent."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from efedllm.chain.amounts import parse_amount
from efedllm.errors import ConfigError

PROFILES = Path(__file__).parent / "profiles"

UINT96 = 2**96 - 1


def _amount(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return parse_amount(value)
        except ConfigError as error:
            raise ValueError(error.message) from error
    return value


# Written as decimal EFED ("1.5"), held as wei.
Amount = Annotated[int, BeforeValidator(_amount), Field(ge=0, le=UINT96)]
Ppm = Annotated[int, Field(ge=0, le=1_000_000)]
Bps = Annotated[int, Field(ge=0, le=10_000)]
Seconds = Annotated[int, Field(gt=0, lt=2**32)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClockSection(_Section):
    """The epoch clock, seconds."""

    epoch_length: Annotated[int, Field(ge=3, le=30 * 86400)]


class TokenSection(_Section):
    """Supply of EFED."""

    cap: Annotated[int, BeforeValidator(_amount), Field(gt=0)]
    initial_supply: Amount


class VaultSection(_Section):
    """Staking."""

    unbonding_period: Seconds


class RegistrySection(_Section):
    """What a node must stake for each layer it serves."""

    min_stake_per_layer: Amount


class CommitteeSection(_Section):
    """Audits, trust and slashing: the fields of SeatRegistry.Terms and VerifierCommittee.Params."""

    committee_size: Annotated[int, Field(ge=1, le=15)]
    theta: Annotated[int, Field(ge=0, le=900_000)]
    reentry: Annotated[int, Field(ge=0, le=900_000)]
    prior_mass: Annotated[int, Field(ge=100_000, le=10**12)]
    p_min: Annotated[int, Field(ge=1_000, le=1_000_000)]
    p_max: Ppm
    slash_first_bps: Annotated[int, Field(ge=1, le=10_000)]
    slash_repeat_bps: Bps
    no_reveal_bps: Annotated[int, Field(ge=0, le=1_000)]
    deviation_bps: Annotated[int, Field(ge=0, le=2_000)]
    probation_cap_bps: Annotated[int, Field(ge=1, le=10_000)]
    exclusion_epochs: Annotated[int, Field(ge=2, le=100_000)]
    seat_stake: Annotated[int, BeforeValidator(_amount), Field(gt=0, le=UINT96)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in (("theta", "reentry"), ("p_min", "p_max"), ("slash_first_bps", "slash_repeat_bps")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} must not exceed {high}")
        return self


class EscrowSection(_Section):
    """Fee on payments and the time nodes have to settle after a client asks to close, seconds."""

    fee_bps: Bps
    grace: Seconds


class LogSection(_Section):
    """How long a batch root stays contestable, seconds."""

    challenge_window: Seconds


class RewardsSection(_Section):
    """Emission: the fields of RewardPool.Params. What servers and verifiers do not get goes to the treasury."""

    e0: Amount
    halving_epochs: Annotated[int, Field(gt=0, lt=2**32)]
    phi_bps: Bps
    servers_bps: Bps
    verifiers_bps: Bps
    stake_cap_bps: Bps

    @model_validator(mode="after")
    def _split(self) -> Self:
        if self.servers_bps + self.verifiers_bps > 10_000:
            raise ValueError("servers_bps + verifiers_bps must not exceed 10000")
        return self


class DisputesSection(_Section):
    """What a node loses that two of its own signatures convict, and how much of that goes to whoever shows them."""

    slash_bps: Annotated[int, Field(ge=1_000, le=10_000)]
    reward_bps: Annotated[int, Field(ge=0, le=5_000)]


class Profile(_Section):
    """All parameters of one network. `chain_ids` limits where it may be deployed; empty means anywhere."""

    name: str
    chain_ids: list[int] = Field(default_factory=list)
    clock: ClockSection
    token: TokenSection
    vault: VaultSection
    registry: RegistrySection
    committee: CommitteeSection
    escrow: EscrowSection
    log: LogSection
    rewards: RewardsSection
    disputes: DisputesSection

    @model_validator(mode="after")
    def _supply(self) -> Self:
        if self.token.initial_supply > self.token.cap:
            raise ValueError("token.initial_supply must not exceed token.cap")
        return self

    @classmethod
    def load(cls, name_or_path: str) -> Profile:
        """A shipped profile by name (local, testnet, production) or a TOML file.

        Raises ConfigError "no-profile" or "bad-profile".
        """
        path = Path(name_or_path)
        if path.suffix != ".toml":
            path = PROFILES / f"{name_or_path}.toml"
        try:
            return cls.model_validate(tomllib.loads(path.read_text()))
        except FileNotFoundError as error:
            known = ", ".join(sorted(item.stem for item in PROFILES.glob("*.toml")))
            raise ConfigError(
                "no-profile", f"There is no profile {name_or_path!r}.", f"Use one of {known}, or a .toml file."
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the profile"
            raise ConfigError("bad-profile", f"{path.name}: {where}: {first['msg']}.", "Correct the file.") from error
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError("bad-profile", f"{path.name} is not valid TOML: {error}.", "Correct the file.") from error

    def params(self) -> dict[str, Any]:
        """The parameters as plain JSON, amounts in wei as strings."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return str(value) if isinstance(value, int) and value >= 2**53 else value

        values: dict[str, Any] = plain(self.model_dump(exclude={"name", "chain_ids"}))
        return values

    def fingerprint(self) -> str:
        """Changes when any parameter does."""
        return hashlib.sha256(self.model_dump_json(exclude={"name", "chain_ids"}).encode()).hexdigest()
