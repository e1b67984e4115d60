"""What the router process can be told."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from protocol.process.settings import Host, ProcessSettings, check_keys, split_keys

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*,\sA-Z]+")


class RouterSettings(ProcessSettings):
    """One router, of whatever models its workers serve: it asks them for what it needs of those.
    Any number may serve the same workers; they share nothing but Redis."""

    aliases_file: Path | None = None
    """JSON file of names that stand for models or their revisions, each with its weight:
    `{"prod": {"llama-3": 95, "llama-3@0e9e39": 5}}`; read again when it changes. None: models are
    asked for by their own names."""
    host: Host = "127.0.0.1"
    """Address of the HTTP API; `::` is every one, IPv6 and IPv4. Loopback, because it is open to
    whoever reaches it unless an API key is set."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the HTTP API. 0: any free one; the log says which."""
    processes: int = Field(default=1, ge=1, le=64)
    """Processes that share the port, each a router of its own: one costs a core at some thousands
    of tokens a second. What limits a router limits each of them."""
    process: int = Field(default=0, ge=0, le=63)
    """Number of this process among those; said by the one that starts them."""
    siblings: Path | None = None
    """Folder of the sockets by which they ask each other; likewise. None: it is the only one."""
    api_key: str = Field(default="", repr=False)
    """Any of these keys, separated by commas and of printable ASCII without spaces, opens the
    API. Empty: it is open. Better set as BATON_API_KEY than as a flag, which other users of the
    machine can read."""
    keys_file: Path | None = None
    """JSON file of API keys with their tenants, weights, priorities and limits, also a mounted
    secret; read again when it changes. None: keys have no terms, and only `api_key` opens the
    API."""
    generation_config: Literal["auto", "none"] = "auto"
    """`auto`: requests that name no sampling values get those of their model's
    generation_config.json, which its authors recommend. `none`: OpenAI's."""
    tool_format: str = "auto"
    """How models call tools. `auto`: as the chat template and the tokens of each show; `none`:
    calls are not read and tools refused; or the name of a format, for all."""
    reasoning_format: str = "auto"
    """How models mark what they think; likewise."""
    clamp_max_tokens: bool = False
    """Whether a request for more tokens than the context has room for gets what there is. OpenAI
    refuses it, and clients that shorten their prompts wait for that."""
    special_tokens_in_content: Literal["text", "token"] = "text"
    """What becomes of special tokens that are written in a message: `text`, so that nobody ends
    a turn but the template; `token`, as transformers has it."""
    policy: Literal["cost", "round_robin", "least_loaded", "random"] = "cost"
    """How workers are chosen: by the least seconds, or, to compare with, in turn, by load alone or
    by chance."""
    local_prefill: Literal["auto", "never"] = "auto"
    """Whether a decode worker may prefill a prompt because that is sooner. `never` still lets
    it when there is no prefill worker."""
    inter_token_target_s: float = Field(default=0.1, gt=0)
    """Seconds between two tokens that a running stream should not exceed: a decode worker with
    streams computes no prompt whose chunks would, while a prefill worker can. 10 tokens a second
    is faster than people read."""
    worker_queue_s: float = Field(default=2.0, gt=0)
    """Seconds of prompts that a worker should have before it at most: when all have more, or no KV
    room, requests wait in the router, which sends them to whoever is free first. Four beats: a
    worker never runs dry while the router waits for its report."""
    session_slack_s: float = Field(default=0.5, ge=0)
    """Seconds later than elsewhere that a request's first token may be expected for it to stay with
    its session's workers. About what a person takes for at once."""
    index_blocks: int = Field(default=10_000_000, ge=1024, le=1 << 32)
    """Different KV blocks, over all workers, whose holders are remembered: 10,000 of each of 1,000
    workers that share none. About 22 bytes each when full, taken as they come."""
    max_attempts: int = Field(default=4, ge=1)
    """Workers a request may lose before it fails: more losses than this are no accident."""
    patience_s: float = Field(default=15.0, ge=0)
    """Seconds a request waits for a decode worker when the last was just lost, its own or one that
    is gone when it comes: a restart takes about 10."""
    retry_share: float = Field(default=0.2, ge=0)
    """Retries a request that comes, of all together, beside what the loss of a worker or two takes:
    a fleet that fails everything is asked for a fifth more, not for four times as much."""
    first_token_stall_s: float = Field(default=10.0, gt=0)
    """Seconds without a first token, and at least 5 times the predicted ones, after which a worker
    that gets nothing done is given up for a request; one that serves others has 4 times as long.
    Longer than any step."""
    next_token_stall_s: float = Field(default=5.0, gt=0)
    """The same between two tokens. A reader notices less; a step beside a prompt takes less."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds one generation may take: the openai SDK gives up after as many."""
    max_in_flight: int = Field(default=1024, ge=1)
    """Generations at once; beyond it 429. About 100 kB of memory each."""
    max_queue: int = Field(default=512, ge=1)
    """Requests of one version (model, revision and text) that wait here while its workers are full;
    the newest of the greediest tenant makes room. Half of `max_in_flight`, which bounds those of
    all versions together: the others run."""
    max_queue_tokens: int = Field(default=2 << 20, ge=1)
    """Of those of one version, prompts and likely answers together: about 70 MB of memory."""
    max_queue_wait_s: float = Field(default=30.0, ge=0)
    """Seconds a request may wait for a worker; it is refused at once when it would be longer. Most
    clients' patience for a first token ends about there."""
    max_body_bytes: int = Field(default=8 << 20, ge=1024)
    """Larger request bodies are refused with 413."""
    max_bodies_bytes: int = Field(default=128 << 20, ge=1024)
    """Of all request bodies being received or read at once; of one client at most half, or one
    body. Beyond it 429."""
    max_lag_bytes: int = Field(default=256 << 10, ge=4096)
    """Of a streamed answer that wait for its client, beyond what the system's socket buffers hold,
    before it is cut off: a thousand tokens, which is more than half a minute of most models. Of a
    hundred clients that stopped reading these are 26 MB. What is told of a prompt does not count:
    its length bounds it."""
    tokenize_threads: int = Field(default=2, ge=1, le=1024)
    """Threads that tokenise: a 32k prompt takes 70 ms of one, which must not stop the others. At
    small prompts there are no more of them than cores."""
    hosts: str = ""
    """Names, separated by commas, by which an open API on loopback may be reached, besides
    `localhost` and addresses: those of a proxy or a web page that passes requests on."""
    cors_origins: str = ""
    """Origins, separated by commas, whose pages may read what the API answers, e.g.
    `https://chat.example`; `*`: any. Empty: none, for no page needs to unless somebody made it
    so."""
    store_responses: Literal["never", "asked", "always"] = "asked"
    """Which answers of `/v1/responses` Redis keeps, with what they were made from. `asked`: those
    of requests that say `store: true`, because prompts would lie there unasked. `always`, as
    OpenAI does: all but those of requests that say `store: false`."""
    store_ttl_s: float = Field(default=86_400.0, gt=0)
    """Seconds a response is kept: a conversation goes on the same day."""
    store_bytes: int = Field(default=64 << 20, ge=1 << 20)
    """Of Redis's memory, that all kept responses may take; each API key has an equal share, and
    the oldest make room."""
    max_connections: int = Field(default=4096, ge=1)
    """Clients connected at once, or half of `ulimit -n` if that is less: workers and Redis need
    the other half. Beyond it the one that keeps us waiting longest is closed; 8 more are for
    probes."""
    keep_alive_s: float = Field(default=75.0, gt=0)
    """Seconds a connection may be silent between requests. Longer than proxies keep theirs, most
    of them for 60, or they send into a connection that is just being closed."""
    head_timeout_s: float = Field(default=20.0, gt=0)
    """Seconds a client has to send the head of a request."""
    linger_s: float = Field(default=5.0, ge=0)
    """Seconds after SIGTERM in which it still accepts, though not ready: load balancers send for
    so much longer. Each answer then asks its client to connect anew, elsewhere."""
    drain_s: float | None = Field(default=None, ge=0)
    """Seconds after those that running requests get to finish; what is left then is told so by an
    error. None: `request_timeout_s`, so that none is cut."""

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, value: str) -> str:
        return check_keys(value)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in split_keys(value):
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "each is `scheme://host` or `scheme://host:port`, in lower case, or `*`"
                )
        return value

    @property
    def drain_or_request_s(self) -> float:
        """Seconds, as of `drain_s`."""
        return self.request_timeout_s if self.drain_s is None else self.drain_s

    @property
    def has_keys(self) -> bool:
        """Whether it is not open to everybody."""
        return bool(self.api_keys) or self.keys_file is not None

    @property
    def api_keys(self) -> tuple[str, ...]:
        return split_keys(self.api_key)
