"""The `BATON_` variables of the environment: which of them mean something to some process.

The environment is shared by processes with different settings, so a variable that only another one
reads is accepted; one that nobody reads is refused, for it is a slip of the hand that would
silently change nothing.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches

from protocol.errors import SettingsError

PREFIX = "BATON_"
KNOWN = frozenset(
    """
    advertise aliases_file allow_fallback api_key batch_invariant block_tokens cache
    clamp_max_tokens config cores cors_origins cuda_graphs decode device drain_s dtype
    first_token_stall_s generation_config head_timeout_s host hosts hung_s index_blocks
    inter_token_target_s keep_alive_s keys_file kv_blocks kv_bytes kv_help_copy kv_huge_pages
    kv_memory_share kv_port kv_socket_folder kv_spin_us lease_ttl_s lend_prefixes linger_s
    local_prefill log_level max_attempts max_bodies_bytes max_body_bytes max_connections
    max_in_flight max_lag_bytes max_model_len max_pulls max_queue max_queue_tokens
    max_queue_wait_s max_running max_tokens max_waiting metrics_port model name
    next_token_stall_s parent_pid patience_s peer pin policy port prefill process processes
    pull_timeout_s reasoning_format redis redis_ca redis_password redis_prefix redis_username
    request_timeout_s retries retry_share router_processes serve served_name session_slack_s
    sha256 siblings special_tokens_in_content store_bytes store_responses store_ttl_s system
    tcp_lanes temperature threads token token_budget tokenize_threads tool_format transports url
    verbose wait_s worker worker_queue_s
    """.split()  # noqa: SIM905 - words read better so
)
"""Fields of all settings. Written out, because no process may import all of them."""
NO_SETTINGS = frozenset({"kernels"})
"""Read before any settings are: where an image has its compiled kernels."""

_LINK_BY_NAME = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)$"
)
_LINK_BY_VALUE = re.compile(r"_PORT(_\d+_(TCP|UDP|SCTP))?$")


def check_variables(environment: Mapping[str, str]) -> None:
    """Raises SettingsError naming the first `BATON_` variable that no process knows."""
    for name, value in sorted(environment.items()):
        field = name.upper().removeprefix(PREFIX)
        if field == name.upper() or field.lower() in KNOWN | NO_SETTINGS:
            continue
        if _is_service_link(field, value):
            continue
        near = get_close_matches(field.lower(), sorted(KNOWN), n=1, cutoff=0.0)
        raise SettingsError(
            f"unknown setting: {name}; the nearest known is {PREFIX}{near[0].upper()}"
        )


def _is_service_link(field: str, value: str) -> bool:
    """Kubernetes puts these into pods for every service, also for one named `baton...`."""
    name = f"_{field}"
    if _LINK_BY_NAME.search(name):
        return True
    return bool(_LINK_BY_VALUE.search(name) and re.match(r"(tcp|udp|sctp)://", value))
