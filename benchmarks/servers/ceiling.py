"""The ceiling: the model in a bare loop, texts sorted by length, batches of 32, padded; no server.

Two of these run at once with one thread each. Reads `WORKLOAD SECONDS` from standard input, embeds for so long, prints
how many texts it did and in what time. What a request's 32 texts cost is the same as what 32 short requests cost here.
"""

import sys
import time

from benchmarks import workload
from benchmarks.servers.encoder import Encoder

_BATCH = 32
_N_TEXTS = 1024


def main() -> None:
    encoder = Encoder()
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        texts = [text for request in workload.requests(name, _N_TEXTS) for text in request][:_N_TEXTS]
        texts.sort(key=len)
        batches = [texts[i : i + _BATCH] for i in range(0, len(texts), _BATCH)]
        # NOTE: every so many-th batch, so that a window too short for all of them still sees every length.
        order = [batches[(i * 13) % len(batches)] for i in range(len(batches))]
        print(*_run(encoder, order, float(seconds)), flush=True)


def _run(encoder: Encoder, batches: list[list[str]], seconds: float) -> tuple[int, float]:
    began, done, turn = time.monotonic(), 0, 0
    while (took := time.monotonic() - began) < seconds:
        done += len(encoder.embed(batches[turn % len(batches)]))
        turn += 1
    return done, took


if __name__ == "__main__":
    main()
