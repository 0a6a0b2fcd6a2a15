"""The client as a library: `async with Client.connect() as client: async for piece in client.generate("...")`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efedllm.chain import Chain, Deployment, keystore
from efedllm.chain.types import ModelInfo
from efedllm.errors import ConfigError
from efedllm.settings import Settings
from efedllm_client.config import ClientConfig
from efedllm_client.jobs.context import JobContext
from efedllm_client.jobs.embedding import Embedding, EmbedEvent
from efedllm_client.jobs.generation import Generation, GenerationEvent, GenerationFinished, Piece
from efedllm_client.jobs.options import GenerateOptions, RouteOptions
from efedllm_client.jobs.report import GenerationReport, report_of
from efedllm_client.payments import closing, wallet
from efedllm_client.payments.session import Sessions
from efedllm_client.payments.store import ClientStore
from efedllm_client.routes.choose import Candidate
from efedllm_client.routes.discovery import find_candidates, find_model
from efedllm_client.routes.quality import find_model_by_quality
from efedllm_client.text.tokenizer import ModelTokenizer, load_tokenizer

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount


class Client:
    """A wallet on one network. Make one with `Client.connect`; without a wallet it can only read."""

    def __init__(
        self,
        chain: Chain,
        store: ClientStore,
        settings: Settings,
        account: LocalAccount | None,
        config: ClientConfig | None = None,
    ) -> None:
        self.chain = chain
        self.store = store
        self.settings = settings
        self.config = config or ClientConfig()
        self._directory = settings.home / "client"
        self._account = account
        self._tokenizers: dict[bytes, ModelTokenizer] = {}
        self.report: GenerationReport | None = None
        """The report of the last generation that was completed."""

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        settings: Settings | None = None,
        *,
        account: LocalAccount | None = None,
        config: ClientConfig | None = None,
        read_only: bool = False,
        **flags: Any,
    ) -> AsyncIterator[Client]:
        """Connect to the network that `settings` name, else `flags`, the environment, efedllm.toml or `efedllm up`.

        The wallet is `account`, else the keystore of the settings, opened with the password file, EFEDLLM_PASSWORD or a
        prompt. `config`: waits and other figures of the client. Raises ConfigError and ChainError.
        """
        settings = settings or Settings.load(**flags)
        deployment = Deployment.load(settings.need_deployment())
        if account is None and not read_only:
            password = keystore.read_password(settings.password_file)
            account = await asyncio.to_thread(keystore.load, settings.need_keystore(), password)
        async with AsyncExitStack() as stack:
            directory = settings.home / "client"
            journal = directory / f"transactions-{account.address.lower()}.json" if account is not None else None
            chain = await stack.enter_async_context(
                await Chain.connect(
                    settings.need_rpc(),
                    deployment,
                    account,
                    budget=settings.rpc_budget,
                    journal=journal,
                    histories=directory / "events",
                )
            )
            store = await ClientStore.at(directory / "client.db")
            stack.push_async_callback(store.close)
            yield cls(chain, store, settings, account, config)

    async def model(self, model_id: str | None = None, min_quality: float | None = None) -> ModelInfo:
        """The model called `model_id` (an id or the start of one), else that of the settings, else the only one.

        With `min_quality`: the cheapest one with a certificate of at least that quality. Raises ConfigError.
        """
        wanted = model_id or self.settings.model_id
        if min_quality is not None:
            return await find_model_by_quality(self.chain, wanted, min_quality, self.config.probe_seconds)
        return await find_model(self.chain, wanted)

    async def nodes(self, model: ModelInfo) -> list[Candidate]:
        """Every node of a model with its latency, measured now."""
        return await find_candidates(self.chain, model, self.config.probe_seconds)

    async def tokenizer(self, model: ModelInfo, candidates: Sequence[Candidate]) -> ModelTokenizer:
        """The model's tokenizer, fetched once and checked against the chain. Raises ModelError."""
        if model.model_id not in self._tokenizers:
            endpoints = [c.endpoint for c in candidates if c.usable]
            self._tokenizers[model.model_id] = await load_tokenizer(model, endpoints, self.settings.home / "models")
        return self._tokenizers[model.model_id]

    async def events(
        self,
        prompt: str | Sequence[int],
        options: GenerateOptions | None = None,
        *,
        model: str | None = None,
    ) -> AsyncGenerator[GenerationEvent]:
        """The events of continuing `prompt`, a text or token ids, see `Generation.events`. Raises EfedError."""
        account = self._need_account()
        info = await self.model(model, options.min_quality if options is not None else None)
        candidates = await self.nodes(info)
        tokenizer = await self.tokenizer(info, candidates)
        tokenizer.check_task(embeds=False)
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ConfigError("empty-prompt", "The prompt is empty.", "Give some text.")
        context = self._context(account, info)
        generation = Generation(context, tokenizer, ids, options or GenerateOptions(), candidates)
        self.report = None
        async with aclosing(generation.events()) as events:
            async for event in events:
                if isinstance(event, GenerationFinished):
                    shown = prompt if isinstance(prompt, str) else tokenizer.decode(ids)
                    self.report = report_of(event, shown, info.model_id)
                yield event

    async def generate(
        self, prompt: str | Sequence[int], *, model: str | None = None, **options: Any
    ) -> AsyncGenerator[str]:
        """Pieces of text as they arrive. `options`: the fields of GenerateOptions. `report` is set afterwards."""
        async with aclosing(self.events(prompt, GenerateOptions(**options), model=model)) as events:
            async for event in events:
                if isinstance(event, Piece) and event.text:
                    yield event.text

    async def embeddings(
        self,
        texts: Sequence[str | Sequence[int]],
        options: RouteOptions | None = None,
        *,
        normalize: bool = True,
        model: str | None = None,
    ) -> AsyncGenerator[EmbedEvent]:
        """Embed texts (or token ids) with an encoder: Embedded for each in order, RouteSwitched where a route failed.

        Raises EfedError; ConfigError "too-long" when a text exceeds the model's context.
        """
        account = self._need_account()
        info = await self.model(model)
        candidates = await self.nodes(info)
        tokenizer = await self.tokenizer(info, candidates)
        tokenizer.check_task(embeds=True)
        ids = [tokenizer.encode(text) if isinstance(text, str) else list(text) for text in texts]
        for text in ids:
            tokenizer.check_length(len(text), 0)
        context = self._context(account, info)
        work = Embedding(context, ids, options, normalize=normalize, candidates=candidates)
        async with aclosing(work.events()) as events:
            async for event in events:
                yield event

    def _context(self, account: LocalAccount, model: ModelInfo) -> JobContext:
        sessions = Sessions(self.chain, self.store, account, self._directory, self.config)
        return JobContext(self.chain, sessions, self.settings.home, model, self.config)

    # --- money ---

    async def balances(self) -> wallet.WalletBalances:
        return await wallet.balances(self.chain, self.store)

    async def deposit(self, amount: int) -> str:
        """Move `amount` wei of EFED from the wallet to the escrow; returns the transaction hash."""
        return await wallet.deposit(self.chain, amount)

    async def withdraw(self, amount: int | None = None) -> closing.Withdrawal:
        """Move `amount` wei (None: all that is free) back to the wallet, closing sessions where needed."""
        return await closing.withdraw(self.chain, self.store, self._directory, amount)

    async def sessions(self, with_closed: bool = False) -> list[wallet.SessionView]:
        return await wallet.session_views(self.chain, self.store, with_closed)

    async def close_sessions(self) -> list[closing.Closed]:
        """Settle and close every session not in use; refunds follow after the grace period."""
        return await closing.close_sessions(self.chain, self.store, self._directory)

    @property
    def receipts(self) -> Path:
        """Directory of the receipts."""
        return self.settings.home / "receipts"

    def _need_account(self) -> LocalAccount:
        if self._account is None:
            raise ConfigError("no-wallet", "This needs a wallet.", "Pass --keystore and --password-file.")
        return self._account
