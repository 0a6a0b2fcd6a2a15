"""The bytes that the exact profile gives on every machine, as hashes."""

from __future__ import annotations

from tests.engine.exact_helpers import stream_ids

PROMPT = stream_ids("prompt", 40)

# sha256 over 40 positions of canonical states and logits. The weights of the tiny models come from sha256 too. A change
# here is a change of the arithmetic: nodes and verifiers that differ in it would accuse each other.
GOLDEN = {
    "llama-None": "d9148bcd61ca80a8182f5693c23391fd32000e973c1b0cf785cc19258a9effbb",
    "llama-tied-12": "fe12fba36edc47e658e90e23906b2174ceb4887e9f7a215a7ed04b1b28446396",
    "mistral-12": "eada9b3b73edb1d0eb115d6ab2503e7dadf7ec7470389ee412a099f9fb50aebe",
    "qwen2-None": "62736d0ad5eb5e97a5aec1e7f7022c429a1d19d061054bcfe282b056a2ad4be6",
    "qwen2-12": "eb292f57140408d736a93dcbb252dd3bef3f7e6bb5562ce605249a0030be6d5e",
    "qwen3-None": "195d692346326da180f21a4b27a755975701f8e7b46f37c51824729916014ff9",
    "llama-packed": "d49341e59bdf1987cc41f7c49b98f69c6a54b8e4e19f80ac50933d4e23018f56",
    "qwen2-packed": "14e2a06e71c1ce8286fddb0fa5a2d6f0ccebb54152b8275e2c679171a672264e",
    "qwen3-mixed": "6fd22150d515c94d17df09bb958485cdd393c59e5acead1437184ba3d6c4216c",
    "llama-tied-mixed": "ac490881d695041d310ed7f68d11c8e89eafae242bf0d8cdd510ddd97b4ed25b",
    "gpt2-None": "aa43bfa9a768907ee230d1482a02fa0d0336140fbd9186b07096be5fed00642b",
    "gpt2-12": "d3779ded68607aae421334a41ecb2ceb1a8ed1c469fa29f832114889af6d9d10",
    "gpt2-packed": "dc1baf31cc07c06fc8e765c23b3af9033787ac924a021e6095d54d5086845efb",
    "gpt2-mixed": "02a886527e79ccb7a9fa1aae6d4360b10465679eb022d17dff145cd3ba12d9cc",
    "bundled-packed": "0f9f2b6de022c0d93cb517a45ee7f415da4d2c5877c97f1a682f507b31efe514",
    "bundled": "565c1e759d6da1e68f12fbaf5a7ca0cd87731a2b27f5995a216f7c8e66447618",
}
BUNDLED_CONSTANTS = "0690f88615224aaf887ae26f8e95a664c8f52fbed3789f303b2e7fbe54dfb645"
GPT2_CONSTANTS = "a7c5e0e1966b71d356a53d3b6f3256cef7d850fc3b021642e480b504e203895c"
