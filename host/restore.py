"""`run.py restore`: the faces of a photo become sharp."""

from __future__ import annotations

from . import face_weights, gpen_weights, picture_job
from .errors import UserError
from .inside import Run

_MORE = "`python run.py weights list`"


def run(run: Run) -> int:
    """Returns: the exit code. Raises: UserError."""
    args = run.args
    upload = picture_job.photo(run)
    with run.stages.time("weights"):
        gpen_weights.require(run.host, run.cache)
        if args.mode != "tiled":
            face_weights.require(run.host, run.cache)

    def choose(known: list[str], usual: str) -> str:
        if not known:
            # There were files, but none of GPEN's.
            raise gpen_weights.missing(run.host, run.cache)
        return choose_model(args.model, known, usual)

    job = picture_job.PictureJob(
        name="restore_portrait",
        node="GPENRestore",
        choice="model",
        choose=choose,
        wishes={
            "strength": args.strength,
            "skin_smooth": args.skin_smooth,
            "mode": args.mode,
            "max_faces": args.max_faces,
        },
        shown=("model", "strength", "skin_smooth", "mode", "max_faces"),
    )
    return picture_job.draw(run, job, upload)


def choose_model(wanted: str | None, known: list[str], usual: str) -> str:
    """The weights to take: what was asked for, else the usual ones, else the only ones.

    wanted: a name, its beginning, or an id of the catalogue. Raises: UserError.
    """
    if wanted is not None:
        return picture_job.named("model", gpen_weights.file_name(wanted), known, _MORE)
    if usual in known:
        return usual
    if len(known) == 1:
        return known[0]
    raise UserError(
        f"there are several models, and no {usual}", f"name one with --model: {', '.join(known)}"
    )
