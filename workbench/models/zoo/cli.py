"""`workbench zoo`: train a model, write samples of the corpus, list what there is.

Imports torch only to work; `workbench eval zoo` measures a model.
"""

import argparse
import json
import logging
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workbench.console import OutputClosed, say
from workbench.models.zoo import config as configs
from workbench.models.zoo import registry
from workbench.models.zoo.corpus import tasks


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="workbench zoo", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train", help="train a model or an adapter, measure it, write its folder and card"
    )
    train.add_argument("config", help=f"a TOML file, or one of {', '.join(configs.known())}")
    train.add_argument("--out", type=Path, help="folder of the model (default: zoo-NAME)")
    train.add_argument("--max-minutes", type=float, help="train for this long instead")
    train.add_argument("--max-steps", type=int, help="train for this many steps instead")
    train.add_argument("--workers", type=int, help="processes that make data")
    train.add_argument("--eval-minutes", type=float, help="minutes between held-out evaluations (0: none)")
    train.add_argument("--items", type=int, help="held-out items a task for the card (0: no card)")
    train.add_argument("--device", choices=("cpu", "cuda"))
    train.add_argument("--no-compile", action="store_true", help="run the model as it is")
    train.add_argument("--fresh", action="store_true", help="do not resume from a checkpoint in the folder")
    train.add_argument(
        "--pack", type=Path, help="also write the folder, without its checkpoint, as this .tar.gz"
    )
    corpus = commands.add_parser("corpus", help="write samples of the corpus as JSON Lines")
    corpus.add_argument("--out", type=Path, default=Path("datasets/zoo"))
    corpus.add_argument("--items", type=int, default=50, help="items a task")
    corpus.add_argument("--tasks", nargs="+", default=[*tasks.NAMES, *tasks.ADAPTER_NAMES])
    corpus.add_argument("--split", choices=("train", "heldout"), default="heldout")
    corpus.add_argument("--seed", type=int, default=0)
    tokenizer = commands.add_parser("tokenizer", help="learn the shared tokenizer anew from the corpus")
    tokenizer.add_argument("--out", type=Path, required=True)
    commands.add_parser("list", help="embedded models, configurations and tasks")
    return top


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit status. A bad name or file is told in one line."""
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("workbench.models.zoo").setLevel(logging.INFO)  # training tells how it goes
    commands = {"train": run_train, "corpus": run_corpus, "tokenizer": run_tokenizer}
    run = commands.get(args.command, run_list)
    try:
        run(args)
    except OutputClosed:
        raise  # not about a name or a file; `workbench` knows what it means
    except (ValueError, OSError) as error:
        sys.stderr.write(f"workbench zoo: {error}\n")
        return 2
    return 0


def run_train(args: argparse.Namespace) -> None:
    """Trains, scores, writes the card, packs."""
    config = adjusted(configs.load(args.config), args)
    from workbench.models.zoo import train

    out = train.train(
        config, args.out or Path(f"zoo-{config.name}"), resume=not args.fresh, device=args.device
    )
    if args.pack:
        pack(out, args.pack)  # once before the scores, so that nothing is lost if they are cut short
    items = config.final_items if args.items is None else args.items
    if items:
        write_card(config, out, items, train.device_for(config, args.device).name)
        if args.pack:
            pack(out, args.pack)


def write_card(config: configs.TrainConfig, out: Path, items: int, device: str) -> None:
    """Scores what was trained and writes its card."""
    from workbench.evals import zoo as evaluation
    from workbench.models.zoo import adapter_card, card

    label = device_label(device)
    if config.adapter:
        adapter_card.write(config, config.adapter, out, items, device, label)
        return
    found = evaluation.measure(out, items, device=device)
    measured = f"`workbench eval zoo {config.name} -n {items}` on {label} in {found.config.dtype}"
    card.write(config, out, found.scores, trained_on=label, measured=measured)


def adjusted(config: configs.TrainConfig, args: argparse.Namespace) -> configs.TrainConfig:
    """The configuration with what the command line changes."""
    if args.max_minutes is not None:
        config = replace(config, max_minutes=args.max_minutes, max_steps=0)
    if args.max_steps is not None:
        config = replace(config, max_steps=args.max_steps, max_minutes=0.0)
    if args.workers is not None:
        config = replace(config, workers=args.workers)
    if args.eval_minutes is not None:
        config = replace(config, eval_minutes=args.eval_minutes)
    config = replace(config, compile=config.compile and not args.no_compile)
    configs.check_values(config, "command line")
    if args.items is not None and args.items < 0:
        raise ValueError(f"--items {args.items} is no number of items: give 0 for no card, or more")
    return config


def device_label(name: str) -> str:
    """The device as the card names it."""
    import torch

    return f"one {torch.cuda.get_device_name()}" if name == "cuda" else "a CPU"


def pack(folder: Path, target: Path) -> None:
    """The folder's files, without the checkpoint, as one compressed archive."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:gz") as archive:
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("checkpoint"):
                archive.add(path, arcname=path.name)


def run_corpus(args: argparse.Namespace) -> None:
    """Writes a file of items for each task."""
    if args.items < 1:
        raise ValueError(f"--items {args.items} is no number of items: give at least 1")
    for name in args.tasks:
        tasks.check_task(name)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.tasks:
        with (args.out / f"{name}.{args.split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for index in range(args.items):
                item = tasks.make(name, args.split, args.seed, index)
                row = {
                    "task": item.task,
                    "kind": item.kind,
                    "prompt": item.prompt,
                    "completion": item.completion,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    say(f"{args.out}: {', '.join(args.tasks)}")


def run_tokenizer(args: argparse.Namespace) -> None:
    """Learns the tokenizer."""
    from workbench.models.zoo import tokens

    tokens.build(args.out)
    say(f"wrote {args.out}")


def run_list(args: argparse.Namespace) -> None:
    """Says what there is."""
    say(f"models: {', '.join(registry.names()) or '(none)'}")
    say(f"adapters: {', '.join(registry.adapter_names()) or '(none)'}")
    say(f"configurations: {', '.join(configs.known())}")
    for name in (*tasks.NAMES, *tasks.ADAPTER_NAMES):
        say(f"task {name}: {', '.join(tasks.kinds_of(name))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
