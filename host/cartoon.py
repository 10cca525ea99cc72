"""`run.py cartoon`: a photo becomes a cartoon."""

from __future__ import annotations

from . import face_weights, picture_job
from .inside import Run

_MORE = "`python run.py weights list`"


def run(run: Run) -> int:
    """Returns: the exit code. Raises: UserError."""
    args = run.args
    # A wrong file is known before the seconds that the host takes.
    upload = picture_job.photo(run)
    with run.stages.time("weights"):
        if not args.no_faces:
            face_weights.ensure(run.host, run.cache)

    def choose(known: list[str], usual: str) -> str:
        return usual if args.style is None else choose_style(args.style, known)

    job = picture_job.PictureJob(
        name="cartoon_1024",
        node="DCTNetCartoon",
        choice="style",
        choose=choose,
        wishes={
            "style_strength": args.strength,
            "line_crispness": args.crispness,
            "face_pass": False if args.no_faces else None,
        },
        shown=("style", "style_strength", "line_crispness", "face_pass"),
    )
    return picture_job.draw(run, job, upload)


def choose_style(wanted: str, known: list[str]) -> str:
    """Raises: UserError that lists the known styles."""
    return picture_job.named("style", wanted, known, _MORE)
