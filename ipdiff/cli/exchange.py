"""Verbs that bring checkpoints in and out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ipdiff.cli.verbs import arg, verb

EXPORT_FORMATS = ("safetensors", "guided-diffusion", "diffusers")


@verb(
    "import",
    "check a checkpoint of guided-diffusion or the DDIM code, and make it a run of this project",
    arg("file", "state dict (.pt), the DDIM code's list (.pth), safetensors", type=Path, metavar="FILE"),
    arg(
        "--as",
        "the run it becomes; MODEL has `imported: true` in params.yaml",
        dest="run",
        required=True,
        metavar="DATASET/MODEL",
    ),
    arg("--seed", "the run's seed (default: 0); sampling draws noise by it", type=int, default=0),
    arg("--step", "its training step (default: what the file or its name says)", type=int),
)
def _import(args: argparse.Namespace) -> None:
    """Reads the file and params.yaml; writes runs/DATASET/MODEL/sSEED/STEP/ and a .dvc file to commit.

    ipdiff import ema_0.9999_460000.pt --as cifar10/adm-ip-official
    """
    from ipdiff.pipeline.commands.exchange import import_

    print(import_.import_checkpoint(args.file, args.run, seed=args.seed, step=args.step))


@verb(
    "export",
    "write a run's weights in a format of others",
    arg(
        "source",
        "a checkpoint's folder or DATASET/MODEL[/sSEED[/STEP]] (default: seed 0, the final step)",
        metavar="CHECKPOINT",
    ),
    arg(
        "--format",
        "diffusers: a folder for DDPMPipeline or DDIMPipeline, with a model card",
        required=True,
        choices=EXPORT_FORMATS,
    ),
    arg("--to", "the file or folder to write; it must not exist", type=Path, required=True),
    arg("--push", "also to this repository of the Hugging Face Hub (needs huggingface_hub)", metavar="ORG/NAME"),
)
def _export(args: argparse.Namespace) -> None:
    """Reads runs/DATASET/MODEL/sSEED/STEP/; writes what --to names.

    ipdiff export digits/adm-ip --format safetensors --to PATH
    """
    from ipdiff.pipeline.commands.exchange import export

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    print(export.export_checkpoint(args.source, args.format, args.to, tell, args.push))
