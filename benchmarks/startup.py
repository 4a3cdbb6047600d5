"""Import and start-up time, each in a fresh process.

    python benchmarks/startup.py --repeats=5

The peer of `import starcoder_jax` is `import jax`; what counts is the difference.
"""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "python alone": "pass",
    "import jax": "import jax",
    "import jax, starcoder_jax": "import jax, starcoder_jax",
    "import starcoder_jax, use Decoder": "import starcoder_jax; starcoder_jax.Decoder",
    "what training imports": "import starcoder_jax.training.loop",
    "tensorflow, which training does not": "import tensorflow",
}


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{'':<38}{'median s':>10}{'min':>8}{'max':>8}")
    for name, statement in STATEMENTS.items():
        seconds(statement)  # fills the file cache
        values = [seconds(statement) for _ in range(repeats)]
        median = statistics.median(values)
        print(f"{name:<38}{median:>10.2f}{min(values):>8.2f}{max(values):>8.2f}")


if __name__ == "__main__":
    main()
