"""A process that takes its turn, says so and keeps it until its input ends.

python -m support.turn_holder NAME
"""

import sys

from protocol.process.turns import take_turn


def main(name: str) -> None:
    with take_turn(name) as is_ours:
        print("ours" if is_ours else "not ours", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
