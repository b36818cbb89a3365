"""The vision stage predicts every kind's state in each cell and in the frame, also for several pairs in one cell."""

import pytest
import torch
from tiny_models import tiny_config, tiny_model

from videollm_mod.data.world_basic import ABSENT, KINDS, LIT_UP, NUM_STATES, THERE, TURNED
from videollm_mod.data.world_data import WorldCells, WorldData, collate_cells
from videollm_mod.training.initialise import init_position_embeddings
from videollm_mod.training.vision_stage import CellClassifier

LEVELS = {"basic": 1, "hard_small": 1, "hard": 1}


def batch(model, count: int, level=LEVELS, first_seed: int = 3):
    """`(pixel values, labels)` of the frames of a few streams."""
    data = WorldData(level=level, first_seed=first_seed)
    cells = WorldCells(data, model.config.vision_config.image_size, model.config.frame_token_pooled)
    examples = collate_cells([cells[index] for index in range(count)])
    return examples["frames"].float() / 127.5 - 1, examples["labels"]


@pytest.mark.parametrize("cls", [True, False])
def test_loss_is_in_nats_per_object(cls):
    model = tiny_model(0, cls=cls)
    classifier = CellClassifier(model)
    torch.nn.init.normal_(classifier.head.weight)
    pixels, labels = batch(model, 4)
    out = classifier(pixels, labels)
    assert out["logits"].shape == (len(pixels), 4 + cls, len(KINDS), NUM_STATES)
    log_probs, nats, things = out["logits"].log_softmax(-1), 0.0, 0
    for frame, states in enumerate(labels.tolist()):
        tokens = [list(map(max, zip(*states, strict=True)))] * cls + states  # the class token sees every cell
        for token, of_kinds in enumerate(tokens):
            for kind, state in enumerate(of_kinds):
                nats -= log_probs[frame, token, kind, state]
                things += state != ABSENT
    torch.testing.assert_close(out["loss"], nats / things, rtol=1e-5, atol=0)
    assert set(labels.unique().tolist()) > {ABSENT, THERE, LIT_UP} and labels.max() >= TURNED
    assert classifier(pixels)["loss"] is None


def test_frame_without_objects_has_a_finite_loss():
    model = tiny_model(1)
    pixels, labels = batch(model, 1)
    assert CellClassifier(model)(pixels, torch.zeros_like(labels))["loss"].isfinite()


def test_averaged_features_encode_several_pairs():
    """Frames of 7 x 7 cells pooled to 3 x 3 tokens: state changes are predicted in each cell and in the frame."""
    config = tiny_config(pooled=(3, 3))
    config.vision_config.hidden_size, config.vision_config.intermediate_size = 64, 96
    config.vision_config.image_size, config.vision_config.patch_size = 56, 8
    config.vision_config.num_attention_heads = 4
    model = tiny_model(2, config=config).train()
    pixels, labels = batch(model, 1, "hard")
    pixels, labels = pixels[:5], labels[:5]
    assert ((labels >= TURNED).sum(2) > 1).any()  # cells with two pairs
    classifier = CellClassifier(model)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=4e-3)
    for _ in range(200):
        optimizer.zero_grad()
        classifier(pixels, labels)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
    said = classifier(pixels)["logits"].argmax(-1)
    assert torch.equal(said[:, 1:], labels)
    assert torch.equal(said[:, 0], labels.amax(1))


@pytest.mark.parametrize("vision", ["siglip_vision_model", "clip_vision_model"])
def test_shift_is_initially_the_same_linear_map_everywhere(vision):
    tower = tiny_model(3, vision=vision).model.vision_tower
    weight = next(value for name, value in tower.named_parameters() if name.endswith("position_embedding.weight"))
    before = weight.detach().clone()
    init_position_embeddings(tower)
    side = 3 if vision == "siglip_vision_model" else 4
    first = len(weight) - side * side
    assert torch.equal(weight[:first], before[:first])  # of the class token
    grid = weight[first:].detach().unflatten(0, (side, side))
    for rows, columns in ((0, 1), (1, 0), (1, 2)):
        here, there = grid[: side - rows, : side - columns], grid[rows:, columns:]
        products = (here * there).sum(-1)
        torch.testing.assert_close(products, products[0, 0].expand_as(products))
        assert products[0, 0] < (here * here).sum(-1).min() - 1e-3
