"""A conversation as a prompt, cut to the context of the model."""

from __future__ import annotations

from efedllm_client.text.tokenizer import ModelTokenizer


class Conversation:
    """Turns so far. The format is plain text ("User: ...", "Assistant: ..."), which any text model can continue."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._turns: list[tuple[str, str]] = []

    def reset(self) -> None:
        self._turns.clear()

    def add(self, said: str, answer: str) -> None:
        """Keep a turn. Drops text after the answer that the model generated for the user."""
        self._turns.append((said, first_answer(answer)))

    def prompt(self, said: str, new_tokens: int) -> list[int]:
        """Token ids of the conversation with a new question; the oldest turns go when the context would overflow."""
        for dropped in range(len(self._turns) + 1):
            ids = self._tokenizer.encode(format_turns(self._turns[dropped:], said))
            if self._tokenizer.context is None or len(ids) + new_tokens <= self._tokenizer.context:
                return ids
        return ids


def format_turns(turns: list[tuple[str, str]], said: str) -> str:
    """The conversation as text, ending where the model answers."""
    past = "".join(f"User: {question}\nAssistant: {answer}\n" for question, answer in turns)
    return f"{past}User: {said}\nAssistant:"


def first_answer(answer: str) -> str:
    """The answer up to where the model goes on as the user."""
    return answer.split("\nUser:")[0].strip()
