"""`python -m qkernels`: what this machine has, what runs. `demo`, `run`, `report` and `bench` show it; `--includes`,
`--libs` and `--cmakedir` are for builds that use the C API."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

# Each is a module with add_arguments(parser) and run(options, arguments) -> exit status, imported when it is asked for.
COMMANDS = {
    "demo": ("qkernels.demo.command", "a real network on real images, float against int8"),
    "run": ("qkernels.onnx.command", "an ONNX model's outputs, the time of each node, and the kernels that ran"),
    "report": ("qkernels.report.command", "what quantization does to a model: accuracy, layers, times, as a page"),
    "bench": ("qkernels.bench.command", "this machine's limits, and how near our kernels and others come to them"),
}

PATHS = {
    "--includes": "compiler flags of the C API",
    "--libs": "linker flags of the C API",
    "--cmakedir": "the folder of the CMake package: -Dqkernels_DIR=…",
}


def path_text(flag: str) -> str:
    """What is printed for a flag of PATHS."""
    from qkernels import library

    if flag == "--includes":
        return f"-I{library.get_include()}"
    if flag == "--cmakedir":
        return library.get_cmake_dir()
    folder = os.path.dirname(library.get_library())
    return f"-L{folder} -Wl,-rpath,{folder} -lqkernels"


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m qkernels", description=__doc__)
    for flag, summary in PATHS.items():
        parser.add_argument(flag, action="append_const", const=flag, dest="paths", help=summary)
    commands = parser.add_subparsers(dest="command", metavar="{config,demo,run,report,bench}")
    commands.add_parser("config", help="this machine's features, threads and kernels (the default)")
    chosen = None
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if given[:1] == [name]:
            chosen = importlib.import_module(module)
            chosen.add_arguments(command)
    options = parser.parse_args(given)
    if options.paths:
        try:
            sys.stdout.write(" ".join(map(path_text, options.paths)) + "\n")
        except FileNotFoundError as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        return 0
    if chosen is not None:
        return int(chosen.run(options, given[1:]))
    from qkernels.config import show_config

    show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
