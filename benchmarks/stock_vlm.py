"""Train an image model of a stock class on pictures of the world, never on a stream.

    python -m videollm_mod.benchmarks.stock_vlm --family llava --variant conversation --seconds 280 --output OUT

First the vision tower and the connector learn to name what is in each cell of a picture, and then the language model
learns to answer questions (`stock_vlm_data`). The vision tower stays as it is in the second stage. Each stage lasts a
share of `--seconds`, and learning rates follow the clock. The output is a folder that transformers loads, also as
`FAMILY_VARIANT.tar`, and `FAMILY_VARIANT.json` with the log and the exact answers about held-out pictures.
`sight` makes a streaming model of it.
"""

import argparse
import json
import random
import shlex
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ..bench.record import surroundings
from ..data.world_basic import KINDS
from ..data.world_hard import SPLITS
from .nano_run import Clock, Team, adamw, autocast, muon_and_adamw
from .stock_vlm_data import IGNORED, QUESTIONS, VARIANTS, Batch, Conversations, ask, cells, draw, of_image, scenes
from .stock_vlm_families import FAMILIES, IMAGE, Family

FIRST_SEED = 3_000_000_000  # of the streams whose scenes are trained on; those of `SPLITS` are smaller
VISION_SHARE, SINGLE_SHARE = 0.2, 0.2  # of the time: naming cells; answering about one picture before conversations


def image_tokens(model, family: Family, scenes: torch.Tensor) -> torch.Tensor:
    """The tokens of pictures as the language model gets them, `[M, N, D]`."""
    found = model.get_image_features(family.pixel_values(draw(scenes))).pooler_output
    found = torch.cat([*found]) if isinstance(found, list | tuple) else found
    return found.reshape(len(scenes), family.image_tokens, -1)


def answer(model, family: Family, batch: Batch, **options):
    """The stock model's output. Images are put in here, since under autocast not every release of the classes can."""
    embeds = model.get_input_embeddings()(batch.input_ids)
    places = batch.input_ids == family.tokenizer.convert_tokens_to_ids(IMAGE)
    embeds = embeds.masked_scatter(places[..., None], image_tokens(model, family, batch.scenes).to(embeds.dtype))
    return model(inputs_embeds=embeds, use_cache=False, **options)


def moved(batch: Batch, device: str) -> Batch:
    return Batch(*(value.to(device, non_blocking=True) for value in vars(batch).values()))


def loader(data: Conversations, workers: int, device: str) -> Iterator[Batch]:
    """Batches on a device, made by other processes if `workers` is above 0."""
    options = {"multiprocessing_context": "spawn", "prefetch_factor": 4} if workers else {}
    for batch in DataLoader(data, batch_size=None, num_workers=workers, **options):
        yield moved(batch, device)


def learn_to_see(model, family: Family, batches: Iterator[Batch], seconds: float, team: Team, log: list) -> None:
    """Name the kind in each cell of a 3 x 3 grid from the mean of the tokens of the cell."""
    width, side = model.get_input_embeddings().embedding_dim, int(family.image_tokens**0.5)
    head = torch.nn.Linear(width, len(KINDS) + 1).to(team.device)
    language = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    language |= {id(p) for name, p in model.named_parameters() if "language_model" in name or "text_model" in name}
    seeing = [p for p in model.parameters() if id(p) not in language]
    clock = Clock("vision", seconds, [adamw([*seeing, *head.parameters()])], team, log)
    while not clock.is_over:
        scenes = next(batches).scenes
        with autocast(team.device):
            tokens = image_tokens(model, family, scenes).transpose(1, 2).unflatten(2, (side, side))
            found = head(torch.nn.functional.adaptive_avg_pool2d(tokens, 3).flatten(2).transpose(1, 2))
        truth = cells(scenes)
        right = (found.argmax(-1) == truth).all(1).float().mean()
        clock.step(torch.nn.functional.cross_entropy(found.float().flatten(0, 1), truth.flatten()), about(right))


def about(right: torch.Tensor):
    return lambda: {"whole_pictures": round(100 * float(right), 2)}


def freeze_tower(model) -> None:
    for name, parameter in model.named_parameters():
        if "vision_tower" in name or "vision_model" in name:
            parameter.requires_grad_(False)


def learn_to_answer(
    model, family: Family, variant: str, batches: dict[str, Iterator[Batch]], checked: dict[str, list[Batch]],
    seconds: float, team: Team, log: list,
) -> None:  # fmt: skip
    freeze_tower(model)
    clock = Clock("answers", seconds, muon_and_adamw(model), team, log)

    def check() -> dict:
        return {name: exact_answers(model, family, found)["see"] for name, found in checked.items()}

    while not clock.is_over:
        batch = next(batches["single" if clock.progress < SINGLE_SHARE else variant])
        with autocast(team.device):
            loss = answer(model, family, batch, labels=batch.labels).loss
        clock.step(loss, check)


@torch.no_grad()
def exact_answers(model, family: Family, batches: list[Batch]) -> dict:
    """Percentage of replies that greedy decoding gives exactly, by kind of question; and for "see" by the number of
    images of the turn and before it.

    A reply is exact if each of its tokens is the most likely one after the true ones, which is the same.
    """
    model.eval()
    exact, replies = [], []
    for batch in batches:
        with autocast(str(batch.input_ids.device)):
            said = answer(model, family, batch).logits[:, :-1].argmax(-1)
        labels = batch.labels[:, 1:]
        wrong = torch.nn.functional.pad(((said != labels) & (labels != IGNORED)).cumsum(1), (1, 0))
        row, start, end = batch.replies[:, :3].unbind(1)
        exact.append((wrong[row, end - 1] == wrong[row, start - 1]).cpu())
        replies.append(batch.replies.cpu())
    model.train()
    right, (*_, question, shown, images) = torch.cat(exact).float(), torch.cat(replies).unbind(1)

    def percent(which: torch.Tensor) -> float | None:
        return round(100 * float(right[which].mean()), 2) if which.any() else None

    see = question == QUESTIONS.index("see")
    return {
        **{name: percent(question == index) for index, name in enumerate(QUESTIONS)},
        "see_by_images_of_turn": {count: percent(see & (shown == count)) for count in range(13)},
        "see_by_images_before": {
            f"{low}-{low + 7}": percent(see & (images - shown >= low) & (images - shown < low + 8))
            for low in range(0, 64, 8)
        },
        "replies": len(right),
    }


def held_out(family: Family, variant: str, split: str, count: int, tokens: int, device: str) -> list[Batch]:
    data = Conversations(family, variant, SPLITS[split], tokens)
    return [moved(batch, device) for batch, _ in zip(data, range(count), strict=False)]


def run(args) -> dict:
    started, team = time.monotonic(), Team(args.device)
    name = f"{args.family}_{args.variant}"
    command = shlex.join(["python", "-m", "videollm_mod.benchmarks.stock_vlm", *args.command])
    result = {"command": command, **surroundings(), "family": args.family, "variant": args.variant}
    family = FAMILIES[args.family]()
    family.learn_words(example_texts(family))
    model = family.new_model(args.width, args.layers, args.seed).to(args.device).train()
    result["parameters"] = sum(p.numel() for p in model.parameters())
    log, variants = result.setdefault("log", []), list(dict.fromkeys(("single", args.variant)))
    data = {each: Conversations(family, each, FIRST_SEED + args.seed, args.tokens) for each in variants}
    batches = {each: loader(data[each], args.workers, args.device) for each in variants}
    next(batches["single"])  # starts the processes
    checked = {each: held_out(family, each, "validation", args.checked, args.tokens, args.device) for each in VARIANTS}
    result["seconds"] = {"start": round(time.monotonic() - started, 1)}
    learn_to_see(model, family, batches["single"], VISION_SHARE * args.seconds, team, log)
    learn_to_answer(model, family, args.variant, batches, checked, (1 - VISION_SHARE) * args.seconds, team, log)
    result["seconds"]["trained"] = round(time.monotonic() - started, 1)
    family.save(model.eval(), args.output / name)
    model.float()  # the weights that were saved
    result["test"] = {
        each: exact_answers(
            model, family, held_out(family, each, "test", 20 * args.checked, args.tokens // 4, args.device)
        )
        for each in VARIANTS
    }
    with tarfile.open(args.output / f"{name}.tar", "w") as archive:
        archive.add(args.output / name, name)
    result["seconds"]["all"] = round(time.monotonic() - started, 1)
    (args.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def example_texts(family: Family, count: int = 3000) -> list[str]:
    """Texts with all words of the conversations, to train a tokenizer on."""
    rng, texts = random.Random("words"), []
    for scene, _ in zip(scenes(iter(range(FIRST_SEED, FIRST_SEED + count)), rng), range(count), strict=False):
        _, question, answer = ask(rng, scene.things)
        which = rng.choice((None, "first", "last"))
        pieces = family.user(rng, 1, of_image(question, which) if which else question, first=rng.random() < 0.5)
        texts.append("".join(pieces) + family.reply(answer))
    return texts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, default="llava")
    parser.add_argument("--variant", choices=VARIANTS, default="conversation")
    parser.add_argument("--output", type=Path, default=Path("runs/stock_vlm"))
    parser.add_argument("--seconds", type=float, default=280, help="time of both stages (default: 280)")
    parser.add_argument("--tokens", type=int, default=49_152, help="of a step (default: 49152)")
    parser.add_argument("--width", type=int, default=256, help="of the language model (default: 256)")
    parser.add_argument("--layers", type=int, default=8, help="of the language model (default: 8)")
    parser.add_argument("--checked", type=int, default=2, help="held-out batches while training (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4, help="processes that make each kind of batch (default: 4)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    args.command = sys.argv[1:] if argv is None else argv
    args.output.mkdir(parents=True, exist_ok=True)
    print(json.dumps(run(args)["test"], indent=1))


if __name__ == "__main__":
    main()
