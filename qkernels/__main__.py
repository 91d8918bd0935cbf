"""`python -m qkernels`: what this machine has, what runs. `demo`, `run` and `bench` show it."""

from __future__ import annotations

import argparse
import importlib
import sys

# Each is a module with add_arguments(parser) and run(options, arguments) -> exit status, imported when it is asked for.
COMMANDS = {
    "demo": ("qkernels.demo.command", "a real network on real images, float against int8"),
    "run": ("qkernels.onnx.command", "an ONNX model's outputs, the time of each node, and the kernels that ran"),
    "report": ("qkernels.report.command", "what quantization does to a model: accuracy, layers, times, as a page"),
    "bench": ("qkernels.bench.command", "this machine's limits, and how near our kernels and others come to them"),
}


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m qkernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="{config,demo,run,report,bench}")
    commands.add_parser("config", help="this machine's features, threads and kernels (the default)")
    chosen = None
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if given[:1] == [name]:
            chosen = importlib.import_module(module)
            chosen.add_arguments(command)
    options = parser.parse_args(given)
    if chosen is not None:
        return int(chosen.run(options, given[1:]))
    from qkernels.config import show_config

    show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
