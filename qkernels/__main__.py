"""`python -m qkernels`: what this machine has, what runs. `demo` and `bench` show it."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qkernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="{config,demo,bench}")
    commands.add_parser("config", help="this machine's features, threads and kernels (the default)")
    demo = commands.add_parser("demo", help="a real network on real images, float against int8")
    bench = commands.add_parser("bench", help="this machine's limits, and the shapes of bench/shapes.py")
    from qkernels import cli

    cli.add_demo_arguments(demo)
    cli.add_bench_arguments(bench)
    chosen = parser.parse_args(arguments)
    if chosen.command == "demo":
        return cli.run_demo(chosen)
    if chosen.command == "bench":
        return cli.run_bench(chosen)
    from qkernels.config import show_config

    show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
