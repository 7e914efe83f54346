"""The `diffstategrad` command: the same words as the Python calls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status.  Wrong input ends with one line, not a
    traceback."""
    args = _parser().parse_args(arguments)
    try:
        return args.run(args) or 0
    except (ValueError, TypeError, OSError, ArithmeticError) as error:
        message = " ".join(str(error).split())
        print(f"diffstategrad {args.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as reason:
        message = str(reason) or "interrupted"
        print(f"diffstategrad {args.command}: {message}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="diffstategrad", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    p = commands.add_parser("solve", help="restore a picture")
    p.add_argument(
        "picture", help="a clean photograph, or with --measured a measurement"
    )
    p.add_argument(
        "--task", required=True, help="name in configs/tasks, or a .yaml file"
    )
    p.add_argument("--method", default="daps")
    p.add_argument(
        "--prior", default="leaves64", help="bundled name, checkpoint or folder"
    )
    p.add_argument("--project", action="store_true", help="with the state projector")
    _add_rank(p, None, "the projector's rank rule; implies --project")
    p.add_argument("--measured", action="store_true", help="the picture is y itself")
    p.add_argument("--sigma", type=float, help="noise of y; default that of the task")
    p.add_argument("--size", type=int, help="cut out and resize to SIZE x SIZE first")
    p.add_argument("--n-samples", type=int, default=1)
    p.add_argument("--steps", type=int)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", help="where to run, such as cuda; default the CPU")
    p.add_argument(
        "--option",
        "-O",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the method, such as steps=20 or preset=exact; repeatable",
    )
    p.add_argument("--out", "-o", required=True, help="picture to write")
    p.add_argument("--save", help="write the whole result, .safetensors")
    p.set_defaults(run=_solve)

    p = commands.add_parser(
        "demo", help="restore photographs, with and without projector"
    )
    p.add_argument("--out", "-o", default="demo", help="folder for the picture")
    p.add_argument("--quick", action="store_true", help="one photograph, few levels")
    _add_rank(p, "per_channel", "the projector's rank rule")
    p.set_defaults(run=_demo)

    p = commands.add_parser("train", help="train a prior")
    p.add_argument("config", help="configs/training/....yaml")
    p.add_argument(
        "--out",
        "-o",
        help="folder for checkpoints, log, samples and the prior; default runs/NAME, "
        "NAME as in the config",
    )
    p.add_argument("--steps", type=int, help="instead of the configured number")
    p.add_argument("--restart", action="store_true", help="ignore a checkpoint in OUT")
    p.set_defaults(run=_train)

    p = commands.add_parser(
        "info", help="versions, libraries, processor, priors; or what a checkpoint is"
    )
    p.add_argument(
        "path", nargs="?", help="bundled name, checkpoint file or diffusers folder"
    )
    p.set_defaults(run=_info)
    return parser


def _add_rank(parser: argparse.ArgumentParser, default: str | None, text: str) -> None:
    rules = ("per_channel", "mean", "official")
    parser.add_argument("--rank", choices=rules, default=default, help=text)


def _solve(args: argparse.Namespace) -> int:
    from diffstategrad.config import load_task
    from diffstategrad.images import check_format, load_image, save_image
    from diffstategrad.projection import StateProjector
    from diffstategrad.result import check_name
    from diffstategrad.solve import solve

    task = load_task(args.task)
    sigma = task.sigma if args.sigma is None else args.sigma
    options = {"task": args.task, **_options(args.option)}
    if args.steps is not None:
        options["steps"] = args.steps
    _check_writable(args.out, args.save)
    check_format(args.out)
    if args.save:
        check_name(args.save)
    picture = load_image(args.picture, args.size)
    operator = task.build(tuple(picture.shape[-2:]))
    if not args.measured:
        try:
            operator.out_shape(tuple(picture.shape[1:]))
        except ValueError as error:
            raise ValueError(
                f"{args.task} does not fit a picture of {picture.shape[3]} x "
                f"{picture.shape[2]}: crop it, or use --size ({error})"
            ) from None
    y = picture if args.measured else operator.measure(picture, sigma, seed=args.seed)
    result = solve(
        y,
        operator,
        args.prior,
        args.method,
        sigma=sigma,
        project=StateProjector(rank=args.rank) if args.rank else args.project,
        n_samples=args.n_samples,
        seed=args.seed,
        device=args.device,
        **options,
    )
    save_image(args.out, result.x)
    if args.save:
        result.save(args.save)
    print(result)
    if not args.measured:
        scores = {k: round(v.item(), 4) for k, v in result.score(picture).items()}
        print(json.dumps(scores))
    return 130 if result.interrupted else 0


def _options(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; values as YAML reads them."""
    import yaml

    out = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--option takes NAME=VALUE, got {pair!r}")
        try:
            out[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--option {name}: cannot read {value!r}") from None
    return out


def _check_writable(*paths: str | None) -> None:
    for path in paths:
        if path and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"no folder to write {path} into")
        if path and Path(path).is_dir():
            raise ValueError(f"{path} is a folder")


def _demo(args: argparse.Namespace) -> None:
    from diffstategrad.demo import run

    run(Path(args.out), quick=args.quick, rank=args.rank)


def _train(args: argparse.Namespace) -> None:
    from diffstategrad.training import train

    path = train(args.config, args.out, args.steps, resume=not args.restart)
    print(f"wrote {path}")


def _info(args: argparse.Namespace) -> None:
    if args.path is None:
        lines = _versions()
    else:
        from diffstategrad.priors import describe_prior

        lines = describe_prior(args.path)
    for name, value in lines.items():
        print(f"{name:14} {value}")


def _versions() -> dict[str, str]:
    import platform

    import numpy
    import torch

    from diffstategrad import __version__, _backend, _core, priors

    core = _core.info()
    return {
        "diffstategrad": __version__,
        "backend": _backend.NAME,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "numpy": numpy.__version__,
        "BLAS": core["blas"],
        "FFT": core["fft"],
        "compiler": core["compiler"],
        "kernels for": ", ".join(core["isa"]),
        "threads": str(core["threads"]),
        "priors": ", ".join(priors.BUNDLED),
    }


if __name__ == "__main__":
    sys.exit(main())
