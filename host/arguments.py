"""The command line's arguments, and every check that needs no environment."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
# Verbs that turn a photo into a picture, and what its name gets.
PICTURE_VERBS = {"cartoon": "cartoon", "restore": "restored", "realistic": "realistic"}


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line and exit code 1 like every other bad input."""

    def __init__(self, **settings: Any) -> None:
        # Arguments for pytest must not be taken for the beginning of one of ours.
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see `python {self.prog} --help`")


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _crispness(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2")
    return value


def _side(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 16384:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 16384")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {(1 << 64) - 1}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100")
    return value


def _gb(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 10000:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 10000")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 65535")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def build() -> Parser:
    """The parser of every verb."""
    parser = Parser(
        prog="run.py",
        description="RealToon: cartoons, restored faces and realistic people from ComfyUI, in one"
        " command.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    host = argparse.ArgumentParser(add_help=False)
    host.add_argument(
        "--comfyui",
        metavar="PATH",
        default=os.environ.get("COMFYUI_PATH") or None,
        help="a ComfyUI folder to use (default: COMFYUI_PATH, the ComfyUI around this folder, "
        "or one of our own)",
    )
    job = argparse.ArgumentParser(add_help=False)
    job.add_argument(
        "--timeout",
        type=_seconds,
        default=900.0,
        metavar="SECONDS",
        help="give up on a picture that shows no progress for so long (default 900)",
    )
    _add_cartoon(verbs.add_parser("cartoon", parents=[host, job], help="a photo becomes a cartoon"))
    _add_restore(
        verbs.add_parser("restore", parents=[host, job], help="the faces of a photo become sharp")
    )
    _add_realistic(
        verbs.add_parser("realistic", parents=[host, job], help="art becomes a realistic person")
    )
    _add_queue(
        verbs.add_parser("queue", parents=[host, job], help="run any API workflow on a ComfyUI")
    )
    serve = verbs.add_parser("serve", parents=[host], help="ComfyUI in the browser, with the pack")
    serve.add_argument("--port", type=_port, metavar="N", help="default: 8188 or the next free one")
    _add_plan(verbs.add_parser("plan", help="how much memory a run takes, without starting one"))
    _add_weights(verbs.add_parser("weights", help="list and fetch model weights"), host)
    more = "All other arguments go to "
    verbs.add_parser(
        "test",
        parents=[host],
        help="everything the tests need, and the tests",
        epilog=f"{more}pytest.",
    )
    bench = verbs.add_parser(
        "bench",
        parents=[host],
        help="our figures beside each peer's",
        epilog=f"{more}the benchmark, such as --quick.",
    )
    bench.add_argument("name", nargs="?", help="a file of benchmarks/ (default: all of them)")
    return parser


def _add_cartoon(verb: argparse.ArgumentParser) -> None:
    _add_picture(verb, "default 1024")
    verb.add_argument("--style", metavar="NAME", help="a style of `weights list` (default: cel)")
    verb.add_argument("--strength", type=_fraction, metavar="X", help="0 to 1 (default 0.75)")
    verb.add_argument("--crispness", type=_crispness, metavar="X", help="0 to 2 (default 1)")
    verb.add_argument("--no-faces", action="store_true", help="one pass for the whole picture only")


def _add_restore(verb: argparse.ArgumentParser) -> None:
    _add_picture(verb, "default 0")
    verb.add_argument(
        "--model",
        metavar="NAME",
        help="a file in models/gpen, its beginning, or an id such as gpen-512 (default: that one, "
        "or the only one there)",
    )
    verb.add_argument("--strength", type=_fraction, metavar="X", help="0 to 1 (default 1)")
    verb.add_argument(
        "--skin-smooth",
        type=_fraction,
        metavar="X",
        help="1 is the network's skin, less gives pores and wrinkles back (default 1)",
    )
    verb.add_argument(
        "--mode",
        choices=["faces", "tiled"],
        help="each face, or the whole picture in tiles (default faces)",
    )
    verb.add_argument(
        "--max-faces", type=_count, metavar="N", help="the largest N, 0 is all of them (default 0)"
    )


def _add_realistic(verb: argparse.ArgumentParser) -> None:
    _add_picture(verb, "default 1024", "ART")
    verb.add_argument(
        "--preset",
        metavar="NAME",
        help="steps and sampler: official (default), lightning 4, realcharacters, … or how one of"
        " Edit Preset's begins",
    )
    verb.add_argument("--prompt", metavar="TEXT", help="what to do (default: the preset's)")
    verb.add_argument("--seed", type=_seed, metavar="N", help="another one, another picture")
    verb.add_argument(
        "--model",
        metavar="NAME",
        help="a file in models/diffusion_models or a folder in models/diffusers, or its beginning"
        " (default: the workflow's, or the only one there)",
    )
    verb.add_argument(
        "--lora", metavar="FILE", help="a LoRA: a file, or the name of one in models/loras"
    )
    verb.add_argument(
        "--tiny",
        action="store_true",
        help="try the workflow on small random weights, made on the spot: it draws noise",
    )


def _add_picture(verb: argparse.ArgumentParser, size: str, what: str = "PHOTO") -> None:
    """What every verb has that turns a photo into a picture."""
    verb.add_argument("photo", nargs="?", metavar=what, help="default: a portrait that is free")
    verb.add_argument(
        "--size", type=_side, metavar="N", help=f"longest side in pixels, 0 keeps it ({size})"
    )
    verb.add_argument("--out", metavar="FILE", help="a .png, .jpg or .webp file")
    verb.add_argument("--port", type=_port, metavar="N", help="default: any free one")


def _add_queue(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("workflow", metavar="WORKFLOW", help="a file made by Export (API)")
    verb.add_argument(
        "--input",
        action="extend",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="pictures for the workflow's LoadImage; several are several jobs",
    )
    verb.add_argument("--input-node", metavar="NODE", help="which LoadImage, if there are several")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="NODE is an id, a title or a class; VALUE may be JSON, or @FILE to upload a picture; "
        "several values of one input, each with its own --set, are several jobs",
    )
    verb.add_argument("--server", metavar="URL", help="a running ComfyUI (default: start our own)")
    verb.add_argument("--out", metavar="DIR", default=".", help="where results go (default: here)")
    verb.add_argument(
        "--format", choices=["png", "jpg", "webp"], help="turn pictures into it (default: as made)"
    )
    verb.add_argument("--port", type=_port, metavar="N", help="for our own ComfyUI")


def _add_plan(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("what", choices=["realistic"], help="which pipeline")
    verb.add_argument("--card", type=_gb, default=24.0, metavar="GB", help="default 24")
    verb.add_argument(
        "--reserve", type=_gb, default=0.5, metavar="GB", help="left for others (default 0.5)"
    )
    verb.add_argument(
        "--size", type=_side, default=1024, metavar="N", help="both sides in px (default 1024)"
    )
    verb.add_argument("--references", type=_count, default=1, metavar="N", help="default 1")
    verb.add_argument("--weights", choices=["fp8", "bf16"], default="fp8", help="default fp8")


def _add_weights(verb: argparse.ArgumentParser, host: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", parents=[host], help="what there is, sizes, licences")
    actions.add_parser("faces", parents=[host], help="fetch the face detector")
    download = actions.add_parser("download", parents=[host], help="fetch one entry of the list")
    download.add_argument("id", metavar="ID", help="of the list, or realistic, or lightning")
    convert = actions.add_parser("convert", parents=[host], help="weights become .safetensors")
    convert.add_argument("source", metavar="SRC")
    convert.add_argument("target", metavar="DST")


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is made.

    Raises: UserError.
    """
    if getattr(args, "port", None) and args.verb != "serve":
        check_port(args.port)
    if args.verb == "serve" and args.port:
        check_port(args.port)
    if args.verb in PICTURE_VERBS:
        if args.photo is not None:
            check_is_file(args.photo, "give the path of a photo")
        check_out_file(picture_target(args))
        if args.verb == "realistic":
            _check_weights(args)
    elif args.verb == "queue":
        check_is_file(args.workflow, "give a workflow saved by Export (API)")
        for picture in args.input:
            check_is_file(picture, "give the path of a picture")
        check_out_folder(Path(args.out))
    elif args.verb == "weights" and args.action == "convert":
        check_is_file(args.source, "give the path of a weights file")
        check_ending(Path(args.target), (".safetensors",))
        check_out_folder(Path(args.target).absolute().parent)


def _check_weights(args: argparse.Namespace) -> None:
    if args.tiny and (args.lora or args.model):
        other = "--lora" if args.lora else "--model"
        raise UserError(
            f"{other} names weights, and --tiny runs on small ones of its own",
            "leave one of the two out",
        )
    if args.lora and _is_path(args.lora):
        check_is_file(args.lora, "give a LoRA's file, or the name of one in models/loras")


def _is_path(name: str) -> bool:
    """Whether a name can only mean a file's place. A bare one may stand in a models folder."""
    return Path(name).name != name


def picture_target(args: argparse.Namespace) -> Path:
    """Where the picture goes: --out, or '<photo>_cartoon.png' or alike in the current folder."""
    if args.out:
        return Path(args.out).expanduser().absolute()
    stem = Path(args.photo).stem if args.photo else "astronaut"
    return Path.cwd() / f"{stem}_{PICTURE_VERBS[args.verb]}.png"


def check_is_file(name: str, next_step: str) -> None:
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"{name} is a folder, not a file", next_step)
    if not path.is_file():
        raise UserError(f"{name} does not exist", f"{next_step} (you are in {Path.cwd()})")
    if not os.access(path, os.R_OK):
        raise UserError(f"{name} cannot be read", "check the file's permissions")


def check_ending(path: Path, known: tuple[str, ...]) -> None:
    if path.suffix.lower() not in known:
        got = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise UserError(f"{path.name} {got}", f"give a name that ends in {' or '.join(known)}")


def check_out_file(path: Path) -> None:
    """The file's ending is one that we write and its folder takes new files."""
    check_ending(path, PICTURE_ENDINGS)
    if path.is_dir():
        raise UserError(f"{path} is a folder", "name a file")
    check_out_folder(path.parent)


def check_out_folder(folder: Path) -> None:
    """The folder, or the nearest one above it that exists, takes new files."""
    existing = folder.expanduser().absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, so {folder} cannot be a folder", "name another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} does not take new files", "name another folder with --out")


def check_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            # As ComfyUI binds: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror or error})",
                "name another with --port, or leave it out",
            ) from error


def free_port(first: int | None = None) -> int:
    """A port that nothing listens on: from `first` upwards, or any."""
    for port in range(first, first + 50) if first else ():
        try:
            check_port(port)
        except UserError:
            continue
        return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
