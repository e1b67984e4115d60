"""Which tests are quick: pure (no socket, no process, no Redis) and soon done; and which may run
beside which."""

from pathlib import PurePath

OTHER_TIERS = frozenset({"system", "slow", "long", "rollouts", "cluster", "gpu"})
"""Marks that keep a test of a quick file out of the quick tier."""
QUICK_FOLDERS = ("unit", "property", "house")
"""Of tests/: their files are quick but for those below."""
ALONE_FOLDERS = ("api", "clients", "cluster", "containers", "contract", "rollouts", "system")
"""Of tests/: clusters and links with clocks of their own; one test of them at a time."""
NOT_PURE = (
    # Sockets, or processes of their own.
    "unit/controlplane/cli/test_*.py",
    "unit/controlplane/fetch/test_fetch.py",
    "unit/controlplane/doctor/test_probe.py",
    "unit/controlplane/local/test_child.py",
    "unit/controlplane/local/test_embedded_redis.py",
    "unit/controlplane/local/test_node_status.py",
    "unit/controlplane/local/test_ports.py",
    "unit/controlplane/local/test_proxies.py",
    "unit/controlplane/local/test_watch.py",
    "unit/kvtransfer/sink/test_events.py",
    "unit/kvtransfer/sink/test_sink*.py",
    "unit/kvtransfer/source/test_sinks.py",
    "unit/kvtransfer/source/test_source.py",
    "unit/kvtransfer/native/test_targets.py",
    "unit/kvtransfer/test_faults.py",
    "unit/kvtransfer/device/test_lib*.py",
    "unit/kvtransfer/transports/nccl/test_pair.py",
    "unit/kvtransfer/transports/tcp/test_frames.py",
    "unit/kvtransfer/transports/tcp/test_tcp.py",
    "unit/kvtransfer/transports/test_device_streams.py",
    "unit/kvtransfer/transports/test_dial.py",
    "unit/kvtransfer/transports/test_staged.py",
    "unit/kvtransfer/transports/test_unix_socket.py",
    "unit/protocol/channel/test_channel.py",
    "unit/protocol/process/kernels/test_c_kernels.py",
    "unit/protocol/process/kernels/test_brought.py",
    "unit/protocol/process/test_model_folder.py",
    "unit/protocol/process/test_run.py",
    "unit/protocol/process/test_turns.py",
    "unit/protocol/test_membership.py",
    "unit/protocol/test_presence.py",
    "unit/protocol/process/test_listening.py",
    "unit/protocol/store/test_*.py",
    "unit/router/http/test_cluster.py",
    "unit/router/http/test_middleware.py",
    "unit/router/http/responses/test_kept.py",
    "unit/router/models/test_served.py",
    "unit/router/models/test_texts.py",
    "unit/router/processes/test_siblings.py",
    "unit/router/requests/test_dispatch.py",
    "unit/router/requests/test_failover.py",
    "unit/router/requests/test_forks.py",
    "unit/router/requests/test_versions.py",
    "unit/router/requests/test_waiting.py",
    "unit/router/requests/test_passing.py",
    "unit/router/tenants/test_rate_limits.py",
    "unit/router/workers/test_index_feed.py",
    "unit/router/workers/test_registry.py",
    "unit/tools/test_first_gpu_parts.py",
    "unit/worker/test_lifecycle.py",
    "unit/worker/test_startup.py",
    "property/test_dispatch_endings.py",
    "house/test_contracts_bite.py",
    "house/test_dockerfile.py",
    # C kernels: a compiler, the first time on a machine.
    "unit/bench/test_*.py",
    "unit/engine/ops/cpu/test_*.py",
    "unit/engine/ops/test_*.py",
    "unit/engine/runner/gpu/test_mixed_steps.py",
    "unit/engine/runner/gpu/test_pool_size.py",
    "unit/engine/runner/gpu/test_runner.py",
    "unit/engine/runner/gpu/test_token_counts.py",
    "unit/engine/runner/test_cpu.py",
    "unit/router/fast_path/test_*.py",
    "unit/router/prefix/test_c_table.py",
    "unit/router/prefix/test_prefix_index.py",
    "unit/router/prefix/test_seen.py",
    "property/test_prefix_index.py",
    "unit/router/requests/test_candidates.py",
    "unit/engine/sampling/test_extremes.py",
    "unit/engine/sampling/test_logprobs.py",
    "unit/engine/sampling/test_sampler.py",
    "unit/engine/test_assembly.py",
    "unit/router/placement/test_*.py",
    "property/test_placement.py",
)
NOT_SOON = (
    # Many long scripts against a scheduler or a fetch: a third of the tier's time.
    "property/test_ownership.py",
    "property/test_transfer_states.py",
    "unit/engine/scheduling/test_guarantees.py",
    # Whole trees read and parsed.
    "house/test_docstrings.py",
    "house/test_names.py",
    "house/test_private.py",
    "house/test_shape.py",
    # Checkpoints written and read.
    "unit/engine/checkpoint/test_experts.py",
    "unit/engine/checkpoint/test_shard.py",
    "unit/engine/models/test_model.py",
)


def is_quick_file(path: PurePath) -> bool:
    """Whether the tests of this file, relative to tests/, are quick but for their marks."""
    return path.parts[0] in QUICK_FOLDERS and not any(map(path.match, NOT_PURE + NOT_SOON))


def turn_of(path: PurePath) -> str:
    """Tests of one turn run one after the other, in one process."""
    return "alone" if path.parts[0] in ALONE_FOLDERS else str(path)
