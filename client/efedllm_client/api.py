"""The client as a library: `async with Client.connect() as client: async for piece in client.generate("...")`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efedllm.chain import keystore
from efedllm.chain.client import Chain
from efedllm.chain.deployment import Deployment
from efedllm.errors import ConfigError
from efedllm.settings import Settings
from efedllm_client.payments import closing, wallet
from efedllm_client.payments.session import Sessions
from efedllm_client.payments.store import Store

# What only some methods run, those methods import: `efedllm wallet balance` must not wait for numpy and tokenizers.
if TYPE_CHECKING:
    from efedllm.chain.account import LocalAccount
    from efedllm.chain.types import ModelInfo
    from efedllm_client.jobs.canary import Planted
    from efedllm_client.jobs.embedding import EmbedEvent
    from efedllm_client.jobs.failover import Place, RouteWishes
    from efedllm_client.jobs.generation import Event
    from efedllm_client.jobs.options import GenerateOptions
    from efedllm_client.jobs.report import Report
    from efedllm_client.policy import RetryPolicy
    from efedllm_client.routes.choose import Candidate
    from efedllm_client.text.tokenizer import Text


class Client:
    """A wallet on one network. Make one with `Client.connect`; without a wallet it can only look."""

    def __init__(self, chain: Chain, store: Store, settings: Settings, account: LocalAccount | None) -> None:
        self.chain = chain
        self.store = store
        self.settings = settings
        self._directory = settings.home / "client"
        self._account = account
        self._texts: dict[bytes, Text] = {}
        self.report: Report | None = None
        """Of the last generation that ran to its end."""

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        settings: Settings | None = None,
        *,
        account: LocalAccount | None = None,
        read_only: bool = False,
        **flags: Any,
    ) -> AsyncIterator[Client]:
        """Connect to the network that `settings` (or `flags`, the environment, efedllm.toml, `efedllm up`) name.

        The wallet is `account`, else the keystore of the settings, opened with the password file, EFEDLLM_PASSWORD or a
        prompt. Raises ConfigError and ChainError.
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
            store = await Store.at(directory / "client.db")
            stack.push_async_callback(store.close)
            yield cls(chain, store, settings, account)

    async def model(self, model_id: str | None = None, min_quality: float | None = None) -> ModelInfo:
        """The model called `model_id` (id or start of one), the settings' one, or the only one; with `min_quality` the
        cheapest one whose certificate says at least that."""
        from efedllm_client.routes.discovery import find_model

        wanted = model_id or self.settings.model_id
        if min_quality is not None:
            from efedllm_client.routes.quality import find_model_by_quality

            return await find_model_by_quality(self.chain, wanted, min_quality)
        return await find_model(self.chain, wanted)

    async def nodes(self, model: ModelInfo) -> list[Candidate]:
        """Every node of a model with its latency."""
        from efedllm_client.routes.discovery import find_candidates

        return await find_candidates(self.chain, model)

    async def text(self, model: ModelInfo, candidates: Sequence[Candidate]) -> Text:
        """The model's tokenizer, fetched once and checked against the chain."""
        from efedllm_client.text.tokenizer import load_text

        if model.model_id not in self._texts:
            endpoints = [c.endpoint for c in candidates if c.usable]
            self._texts[model.model_id] = await load_text(model, endpoints, self.settings.home / "models")
        return self._texts[model.model_id]

    async def events(
        self,
        prompt: str | Sequence[int],
        options: GenerateOptions | None = None,
        *,
        model: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> AsyncGenerator[Event]:
        """Everything that happens while `prompt` (text, or token ids) is continued. Raises EfedError."""
        from efedllm_client.jobs.generation import Finished, Generation
        from efedllm_client.jobs.options import GenerateOptions
        from efedllm_client.jobs.report import report_of

        account = self._need_account()
        info = await self.model(model, options.min_quality if options is not None else None)
        candidates = await self.nodes(info)
        text = await self.text(info, candidates)
        text.check_task(embeds=False)
        ids = text.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ConfigError("empty-prompt", "The prompt is empty.", "Give some text.")
        generation = Generation(self._place(account, info), text, ids, options or GenerateOptions(), retry, candidates)
        self.report = None
        async with aclosing(generation.events()) as events:
            async for event in events:
                if isinstance(event, Finished):
                    shown = prompt if isinstance(prompt, str) else text.decode(ids)
                    self.report = report_of(event, shown, info.model_id)
                yield event

    async def generate(
        self, prompt: str | Sequence[int], *, model: str | None = None, **options: Any
    ) -> AsyncGenerator[str]:
        """Pieces of text as they arrive; `options` are the fields of GenerateOptions. Afterwards see `report`."""
        from efedllm_client.jobs.generation import Piece
        from efedllm_client.jobs.options import GenerateOptions

        async with aclosing(self.events(prompt, GenerateOptions(**options), model=model)) as events:
            async for event in events:
                if isinstance(event, Piece) and event.text:
                    yield event.text

    async def embeddings(
        self,
        texts: Sequence[str | Sequence[int]],
        wishes: RouteWishes | None = None,
        *,
        normalize: bool = True,
        model: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> AsyncGenerator[EmbedEvent]:
        """Embed texts (or token ids) with an encoder: Embedded for each in order, Switched where a route failed.

        Raises EfedError; ConfigError "too-long" when a text exceeds the model's context.
        """
        from efedllm_client.jobs.embedding import Embedding

        account = self._need_account()
        info = await self.model(model)
        candidates = await self.nodes(info)
        tokenizer = await self.text(info, candidates)
        tokenizer.check_task(embeds=True)
        ids = [tokenizer.encode(text) if isinstance(text, str) else list(text) for text in texts]
        for text in ids:
            tokenizer.check_length(len(text), 0)
        work = Embedding(
            self._place(account, info), ids, wishes, normalize=normalize, retry=retry, candidates=candidates
        )
        async with aclosing(work.events()) as events:
            async for event in events:
                yield event

    async def plant(
        self, node: str, prompts: Sequence[str], options: GenerateOptions | None = None, *, model: str | None = None
    ) -> AsyncGenerator[Planted]:
        """Plant a canary at `node` for each prompt: see `efedllm_client.jobs.canary`. Raises EfedError."""
        from efedllm_client.jobs.canary import plant
        from efedllm_client.jobs.options import GenerateOptions

        account = self._need_account()
        info = await self.model(model)
        candidates = await self.nodes(info)
        text = await self.text(info, candidates)
        text.check_task(embeds=False)
        ids = [text.encode(prompt) for prompt in prompts]
        place, wallet = self._place(account, info), str(account.address)
        planting = plant(place, text, candidates, wallet, node, ids, options or GenerateOptions())
        async with aclosing(planting) as planted:
            async for item in planted:
                yield item

    def _place(self, account: LocalAccount, model: ModelInfo) -> Place:
        from efedllm_client.jobs.failover import Place

        sessions = Sessions(self.chain, self.store, account, self._directory)
        return Place(self.chain, sessions, self.settings.home, model)

    # --- money ---

    async def balances(self) -> wallet.Balances:
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
