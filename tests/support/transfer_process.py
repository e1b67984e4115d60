"""One end of kvtransfer as a process of its own, for tests that kill it.

`python -m support.transfer_process source TTL_S` prints its tickets, one JSON line each, and has
everything written. `... sink TRANSPORT TTL_S` reads tickets from standard input, fetches each
whole and prints a line for each start and end. Both then wait until standard input ends.
"""

import json
import subprocess
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import msgspec
from support.transfer import Borrower, Lender

from kvtransfer.messages import Slot
from kvtransfer.sink import FetchEnd
from protocol.layout import KvLayout
from protocol.messages import Ticket

LAYOUT = KvLayout(num_layers=4, num_kv_heads=4, head_dim=32, block_tokens=16, dtype="float32")
"""64 KiB a block."""
NUM_LEASES = 4
LEASE_BLOCKS = 128
ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "support.transfer_process", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"},
    )


def pack(ticket: Ticket) -> str:
    return json.dumps(b64encode(msgspec.msgpack.encode(ticket)).decode())


def unpack(line: str) -> Ticket:
    return msgspec.msgpack.decode(b64decode(json.loads(line)), type=Ticket)


def whole(lease: int) -> range:
    """The pool blocks of the n-th lease."""
    return range(lease * LEASE_BLOCKS, (lease + 1) * LEASE_BLOCKS)


def be_source(lease_ttl_s: float) -> None:
    lender = Lender(layout=LAYOUT, num_blocks=NUM_LEASES * LEASE_BLOCKS, lease_ttl_s=lease_ttl_s)
    for lease in range(NUM_LEASES):
        ticket = lender.lend(whole(lease))
        lender.write_all(ticket, note=bytes([lease]))
        print(pack(ticket), flush=True)
    sys.stdin.read()
    lender.close()


def be_sink(transport: str, lease_ttl_s: float) -> None:
    borrower = Borrower(
        layout=LAYOUT, num_blocks=NUM_LEASES * LEASE_BLOCKS, transports=(transport,),
        lease_ttl_s=lease_ttl_s,
    )  # fmt: skip

    def tell(end: FetchEnd) -> None:
        print(type(end).__name__, flush=True)

    print("ready", flush=True)
    for lease, line in enumerate(sys.stdin):
        slots = [Slot(index, block) for index, block in enumerate(whole(lease))]
        borrower.sink.fetch(ticket=unpack(line), slots=slots, deadline_s=60.0, on_end=tell)
        print("fetching", flush=True)
    borrower.close()


if __name__ == "__main__":
    if sys.argv[1] == "source":
        be_source(float(sys.argv[2]))
    else:
        be_sink(sys.argv[2], float(sys.argv[3]))
