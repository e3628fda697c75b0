"""A longer fuzz of the association port than the test suite has time for.

    python -m tests.studies.fuzz_association --seconds 60 --seed 2

Mutated conversations from four threads; prints how many, what raised, and how memory and threads stand afterwards.
"""

import argparse
import random
import tempfile
import threading
import time
import traceback
from pathlib import Path

import psutil

from tests.network_builders import RunningNode, echoscu, running_node, wait_until
from tests.test_association_server import fuzz_once

ATTACKERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    surprises: list[threading.ExceptHookArgs] = []
    threading.excepthook = surprises.append
    with tempfile.TemporaryDirectory() as folder, running_node(Path(folder)) as node:
        echoscu(node.port)
        memory, threads = psutil.Process().memory_info().rss, threading.active_count()
        conversations = _attack(node, arguments.seconds, arguments.seed)
        settled = wait_until(lambda: threading.active_count() <= threads, 20.0)
        rise_mb = (psutil.Process().memory_info().rss - memory) / 2**20
        answers = echoscu(node.port).code == 0
        left_over = len(list(node.inbox.incoming.iterdir()))
    print(
        f"{conversations} conversations, {len(surprises)} uncaught exceptions, memory +{rise_mb:.0f} MB, threads "
        f"{'back' if settled else 'left over'}, {left_over} temporary files, "
        f"verification {'ok' if answers else 'fails'}"
    )
    for surprise in surprises:
        traceback.print_exception(surprise.exc_value)
    raise SystemExit(0 if answers and settled and not surprises and not left_over else 1)


def _attack(node: RunningNode, seconds: float, seed: int) -> int:
    counts = [0] * ATTACKERS
    deadline = time.monotonic() + seconds

    def attack(number: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        while time.monotonic() < deadline:
            fuzz_once(node, rng)
            counts[number] += 1

    attackers = [threading.Thread(target=attack, args=(number,)) for number in range(ATTACKERS)]
    for attacker in attackers:
        attacker.start()
    for attacker in attackers:
        attacker.join()
    return sum(counts)


if __name__ == "__main__":
    main()
