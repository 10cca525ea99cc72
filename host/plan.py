"""`run.py plan`: how much memory a run takes in each phase, and how it is kept within a card.

Arithmetic alone: nothing is started, loaded or downloaded, and no environment is made.
"""

from __future__ import annotations

import argparse

from ..engine import vram_plan, vram_words
from ..engine.vram_plan import GB, Job, Loaded
from .console import say
from .errors import UserError

# Numbers in the official Qwen-Image-Edit-2511, whose modulation is answered from a table. The
# published fp8 text encoder keeps its table of tokens in bf16.
DIT, TEXT, TOKENS, VAE = 13_633_416_768, 7_747_169_280, 544_997_376, 126_892_531
# Six vectors a block for each of 30 steps in two streams, and for the references' time 0.
TABLE_BYTES = 60 * 6 * 3072 * 2 * (2 * 30 + 1)
LEAST_SIDE = 16


def main(args: argparse.Namespace) -> int:
    """Returns: 0 where the run fits, 1 where it does not. Raises: UserError."""
    if args.size < LEAST_SIDE:
        raise UserError(f"--size {args.size} is too small", f"give {LEAST_SIDE} or more")
    side = round(args.size / 16) * 16
    job = Job(width=side, height=side, references=((side, side),) * args.references)
    loaded = weights(args.weights)
    made = vram_plan.plan(loaded, job, round(args.card * GB), round(args.reserve * GB))
    kind = f"Qwen-Image-Edit-2511 in {args.weights}, references: {args.references}"
    say(f"{kind}. Predicted from simulations, with margins.")
    for line in vram_words.told(made, loaded):
        say(line)
    return 0 if made.fits else 1


def weights(dtype: str) -> Loaded:
    """The official model. dtype: fp8 or bf16, of the DiT and the text encoder."""
    wide = {"bfloat16": 2 * VAE}
    if dtype == "bf16":
        dit, text = {"bfloat16": 2 * DIT}, {"bfloat16": 2 * TEXT}
    else:
        dit = {"float8_e4m3fn": DIT}
        text = {"float8_e4m3fn": TEXT - TOKENS, "bfloat16": 2 * TOKENS}
    return Loaded(dit=dit, text_encoder=text, vae=wide, table=TABLE_BYTES)
