"""From frames to features as on a GPU: equal to the processor and the tower. The parts run on a CPU here."""

import os
import random
from unittest import mock

import numpy as np
import pytest
import torch
from comparing import PROBABILITY, assert_near, assert_same_events
from small_data import small_model
from tiny_models import VISION, tiny_config, tiny_model
from torch.nn.functional import interpolate
from transformers import AutoConfig, AutoModel, SiglipVisionConfig
from transformers.image_utils import SizeDict

from videollm_mod import static_vision
from videollm_mod import steps as steps_module
from videollm_mod import streaming as streaming_module
from videollm_mod.configuration_videollm_mod import VISION_MODEL_TYPES
from videollm_mod.data.world import world_stream
from videollm_mod.static_vision import MAX_FRAMES, PlainTowerOps, StaticVision, TowerKernels, is_plain, run
from videollm_mod.steps import FIRST_FRAMES, Encode, in_pieces, pixels_of, run_together
from videollm_mod.video_processing_videollm_mod import (
    FRAME_OPTIONS,
    VideoLLMMoDVideoProcessor,
    pixels_by_products,
    resizing,
)


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


def siglip(seed: int, **options):
    torch.manual_seed(seed)
    config = SiglipVisionConfig(**{**VISION["siglip_vision_model"], **options})
    tower = AutoModel.from_config(config).eval()
    for weight in tower.parameters():  # biases are zero at first
        torch.nn.init.normal_(weight, std=0.3)
    return tower


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", [{}, {"num_attention_heads": 4, "hidden_size": 32}, {"image_size": 30}, {"vision_use_head": False}]
)
@torch.no_grad()
def test_the_static_tower_equals_the_tower(seed, options):
    tower = siglip(seed, **options)
    assert is_plain(tower)
    size = tower.config.image_size
    pixels = torch.randn(1 + seed, 3, size, size)
    expected = tower(pixels)
    hidden, pooled = run(tower, pixels)
    assert_near(hidden, expected.last_hidden_state)
    if options.get("vision_use_head", True):
        assert_near(pooled, expected.pooler_output)
    else:
        assert pooled is None and expected.pooler_output is None


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter, TRITON_INTERPRET=1")
@pytest.mark.parametrize("width", [16, 24, 130])
@pytest.mark.parametrize("rows", [1, 2, 4])
@torch.no_grad()
def test_kernel_equals_plain_torch(width, rows):
    """Even if the width is no power of two, and if rows do not fill the last program."""
    pytest.importorskip("triton")
    torch.manual_seed(width)
    norm, x, more = torch.nn.LayerNorm(width, eps=1e-3), torch.randn(3, 7, width), torch.randn(3, 7, width)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    with mock.patch.object(static_vision, "ROWS", rows):
        for value, expected in zip(
            TowerKernels.add_and_norm(x, more, norm), PlainTowerOps.add_and_norm(x, more, norm), strict=True
        ):
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", VISION_MODEL_TYPES)
@pytest.mark.parametrize("side, hidden_act", [(3, "gelu_pytorch_tanh"), (7, "quick_gelu"), (19, "gelu")])
@torch.no_grad()
def test_every_static_tower_equals_the_tower(kind, side, hidden_act):
    """At 19 patches a side the position ids of SmolVLM and Idefics3 are not 0 to n - 1."""
    options = {**VISION["siglip_vision_model"], "image_size": 4 * side, "patch_size": 4, "num_hidden_layers": 3}
    torch.manual_seed(side)
    tower = AutoModel.from_config(AutoConfig.for_model(kind, **options, hidden_act=hidden_act)).eval()
    for weight in tower.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    assert is_plain(tower)
    pixels = torch.randn(2, 3, 4 * side, 4 * side)
    expected = tower(pixels, output_hidden_states=True)
    assert_near(run(tower, pixels)[0], expected.last_hidden_state)
    for layers in (-1, 0, -2, [0], [1, 3], [-1, -4, 2]):
        hidden, pooled = run(tower, pixels, feature_layer=layers)
        listed = [layers] if isinstance(layers, int) else layers
        assert_near(hidden, torch.cat([expected.hidden_states[index] for index in listed], dim=-1))
        assert pooled is None


def test_other_kinds_of_tower_keep_their_forward():
    assert not is_plain(siglip(0).train())
    tower = siglip(0)
    layer = next(part for name, part in tower.named_modules() if name.endswith("layers.1.mlp"))
    layer.fc1 = torch.nn.utils.parametrizations.weight_norm(layer.fc1)
    assert not is_plain(tower)
    tower = siglip(0)
    next(tower.parameters()).data = next(tower.parameters()).data.bfloat16()
    assert not is_plain(tower)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("layers", [None, [0, -1]])
@torch.no_grad()
def test_static_tower_and_model_give_equal_features(seed, layers):
    config = tiny_config(cls=layers is None)
    config.vision_feature_layer = layers
    model = tiny_model(seed, config)
    pixels = torch.randn(3, 3, 24, 24)
    vision = StaticVision(model)
    expected = model.encode_frames(pixels).pooler_output
    vision._ops = PlainTowerOps
    features = vision._features(model.model, pixels)
    assert vision._ops is PlainTowerOps
    assert_near(features, expected)


def test_failing_kernels_fall_back_to_the_tower():
    model, pixels = tiny_model(0), torch.randn(3, 3, 24, 24)
    vision, broken = StaticVision(model), mock.Mock(**{"embed.side_effect": RuntimeError("no compiler")})
    vision._ops = broken
    with torch.no_grad():
        features = vision._features(model.model, pixels)
        assert torch.equal(features, model.encode_frames(pixels).pooler_output)
    assert broken.embed.called and vision._ops is None


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [((72, 128), (22, 38)), ((9, 31), (40, 17)), ((30, 30), (30, 7)), ((1, 5), (3, 1))])
def test_resizing_by_matrix_products_equals_interpolate(mode, sizes):
    old, new = sizes
    frames = torch.randint(0, 256, (2, *old, 3)).movedim(-1, 1).float()
    expected = interpolate(frames, new, mode=mode, antialias=True)
    rows, columns = (resizing(*sides, (0, 0), mode, frames.device) for sides in zip(old, new, strict=True))
    torch.testing.assert_close(rows @ frames @ columns.T, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(12))
def test_matrix_products_and_processor_give_equal_pixels(seed):
    """Frames of any size, larger and smaller than the result, in either memory layout and with any options."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    size = {"height": rng.choice((24, 50)), "width": rng.choice((24, 20, 61))}
    options = {"do_pad": rng.random() < 0.7, "resample": rng.choice((2, 3)), "do_normalize": rng.random() < 0.8}
    if rng.random() < 0.5:
        options |= {"image_mean": [0.1, 0.4, 0.7], "image_std": [0.2, 0.5, 0.3]}
    processor = VideoLLMMoDVideoProcessor(size=size, **options)
    for old in ((90, 160), (10, 17), (24, 24), (50, 20), (1, 5), (rng.randint(1, 80), rng.randint(1, 80))):
        frames = 255 * torch.rand(2, *old, 3) if rng.random() < 0.5 else 255 * (torch.rand(2, *old, 3) < 0.5)
        frames = frames.to(torch.uint8).movedim(-1, 1)
        frames = frames.contiguous() if rng.random() < 0.5 else frames
        options = {name: getattr(processor, name) for name in FRAME_OPTIONS}
        expected = processor._preprocess_frames(frames, **options)
        for pixels in (processor.to_pixels(frames), pixels_by_products(frames, **options)):
            assert pixels.dtype == torch.float32 and pixels.is_contiguous()
            torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_matrix_products_refuse_wrong_options():
    frames = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    processor = VideoLLMMoDVideoProcessor()
    options = {name: getattr(processor, name) for name in FRAME_OPTIONS}
    for wrong in ({"resample": 9}, {"size": SizeDict(shortest_edge=3)}):
        for make in (pixels_by_products, processor._preprocess_frames):
            with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
                make(frames, **{**options, **wrong})


@pytest.mark.parametrize(
    "counts", [[30], [15], [16], [1] * 20, [5, 12, 3], [8, 8], [40, 1], [3, 40], [7, 8], [32] * 8]
)
def test_pieces_hold_all_frames_in_order(counts):
    steps = [Encode(mock.Mock(), mock.Mock(), torch.full((count, 1), index)) for index, count in enumerate(counts)]
    for device in ("cpu", "cuda"):
        pieces = in_pieces(steps, torch.device(device))
        for step in steps:
            own = [frames for piece in pieces for other, frames in piece if other is step]
            assert torch.equal(torch.cat(own), step.frames)
        order = [steps.index(step) for piece in pieces for step, _ in piece]
        assert order == sorted(order)
        sizes = [sum(len(frames) for _, frames in piece) for piece in pieces]
        cut = device == "cuda" and sum(counts) >= 2 * FIRST_FRAMES
        assert all(sizes) and (sizes[0] <= FIRST_FRAMES < sum(sizes) if cut else len(sizes) == 1)
        assert not cut or max(sizes) <= MAX_FRAMES
        assert not cut or len(counts) > 1 or len(sizes) <= 2 + sum(sizes) // (MAX_FRAMES - FIRST_FRAMES)


def test_a_pool_needs_few_graphs_of_the_tower():
    """However many frames come together, their pieces have few sizes, and most frames are in large ones."""
    found, steps = set(), [Encode(mock.Mock(), mock.Mock(), torch.zeros(1, 1)) for _ in range(300)]
    for total in range(1, 301):
        sizes = [sum(len(own) for _, own in piece) for piece in in_pieces(steps[:total], torch.device("cuda"))]
        assert sum(sizes) == total and all(size >= FIRST_FRAMES for size in sizes[:-1])
        assert len(sizes) <= 5 + total // MAX_FRAMES
        found.update(sizes)
    assert len(found) <= static_vision.GRAPHS


def cut_in_three(steps, device):
    rng = random.Random(len(steps))
    parts = [(step, frames) for step in steps for frames in step.frames.split(2)]
    first, second = sorted(rng.sample(range(1, len(parts)), 2))
    return [parts[:first], parts[first:second], parts[second:]]


def test_features_do_not_depend_on_pieces(checkpoint):
    model, processor = checkpoint
    frames = [torch.from_numpy(world_stream(seed).frames(height=96)[:7]).movedim(-1, 1) for seed in range(3)]
    found = []
    for cut in (in_pieces, cut_in_three):
        steps = [Encode(model, processor.video_processor, own) for own in frames]
        with mock.patch.object(steps_module, "in_pieces", cut):
            run_together(steps)
        found.append([step.result() for step in steps])
    for whole, pieces in zip(*found, strict=True):
        assert whole.shape == pieces.shape == (7, *whole.shape[1:])
        assert_near(pieces, whole)
    for step in steps:
        assert {time.stage for time in step.times} == {"preprocess", "vision"}
        assert all(time.seconds() > 0 for time in step.times)


def test_failure_in_a_later_piece_leaves_the_session_unchanged(checkpoint):
    model, processor = checkpoint
    frames = world_stream(5).frames(height=96)[:12]
    session, other = model.stream(processor), model.stream(processor)
    expected = other.push(frames)
    events, encode, calls = session.push(frames[:4]), steps_module.encode, []

    def second_fails(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("the second piece")
        return encode(*arguments)

    tokens = session.stats.tokens
    with (
        mock.patch.object(steps_module, "in_pieces", cut_in_three),
        mock.patch.object(steps_module, "encode", second_fails),
        pytest.raises(RuntimeError, match="the second piece"),
    ):
        session.push(frames[4:])
    assert len(calls) == 2 and session.stats.tokens == tokens and session.stats.frames == 4
    events += session.push(frames[4:])
    assert_same_events(events, expected)


@pytest.mark.parametrize("change", ["parameter", "data", "module", "hook", "state"])
def test_graphs_are_out_of_date_when_the_tower_changes(change):
    model = tiny_model(0)
    vision, tower = StaticVision(model), model.model.vision_tower
    assert vision.is_current
    layer = next(part for part in tower.modules() if type(part) is torch.nn.Linear)
    if change == "parameter":
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    elif change == "data":
        layer.weight.data = layer.weight.data.clone()
    elif change == "module":
        owner = next(part for part in tower.modules() if layer in part.children())
        name = next(name for name, part in owner.named_children() if part is layer)
        setattr(owner, name, torch.nn.Linear(layer.in_features, layer.out_features))
    elif change == "hook":
        layer.register_forward_hook(lambda *arguments: None)
    else:
        state = {name: value.clone() for name, value in tower.state_dict().items()}
        tower.load_state_dict(state, assign=True)
    assert not vision.is_current


def is_the_callers(frames: torch.Tensor, array: np.ndarray, first: int) -> bool:
    """Whether `frames` share the memory of `array`, from frame `first` on, contiguously: one copy moves them."""
    start = array.ctypes.data + first * array[0].nbytes
    rows = frames.movedim(1, -1) if array.shape[-1] == 3 else frames
    return frames.data_ptr() == start and rows.is_contiguous()


@pytest.fixture(scope="module")
def small():
    return small_model()


@pytest.mark.parametrize("layout", [(20, 24, 3), (3, 20, 24)])
@pytest.mark.parametrize("count", [1, 15, 30, 32])
def test_pushed_frames_are_not_copied_on_their_way_to_a_gpu(small, count, layout):
    model, processor = small
    array, gpu, came = (
        np.random.default_rng(count).integers(0, 256, (count, *layout), np.uint8),
        torch.device("cuda"),
        [],
    )

    def came_to(frames, device):
        assert device == gpu
        came.append(frames)
        return frames

    with (
        mock.patch.object(steps_module, "in_pieces", lambda steps, device: in_pieces(steps, gpu)),
        mock.patch.object(steps_module, "pixels_of", lambda piece, device: pixels_of(piece, gpu)),
        mock.patch.object(steps_module, "to_device", came_to),
        mock.patch.object(streaming_module, "FRAMES_AT_ONCE", streaming_module.FRAMES_AT_ONCE_ON_GPU),
    ):
        watched = list(model.stream(processor, speak_threshold=0.0).watch(array))
    assert [len(frames) for frames in came] == ([count] if count < 2 * FIRST_FRAMES else [8, count - 8])
    first = 0
    for frames in came:
        assert is_the_callers(frames, array, first)
        first += len(frames)
    assert not is_the_callers(came[0].clone(), array, 0)
    expected = list(model.stream(processor, speak_threshold=0.0).watch(array))
    assert_near(*([frame.silence_probability for frame in frames] for frames in (watched, expected)), PROBABILITY)


def test_frames_of_several_streams_are_joined_on_the_gpu(checkpoint):
    """Each stream is copied as it is, and its pixels equal those of the stream alone."""
    model, processor = checkpoint
    videos = [torch.from_numpy(world_stream(seed).frames(height=96)[:5]).movedim(-1, 1) for seed in range(3)]
    steps, came = [Encode(model, processor.video_processor, video) for video in videos], []
    with mock.patch.object(steps_module, "to_device", lambda frames, device: came.append(frames) or frames):
        pixels = pixels_of([(step, step.frames) for step in steps], torch.device("cuda"))
    assert [frames.data_ptr() for frames in came] == [video.data_ptr() for video in videos]
    assert_near(pixels, torch.cat([processor.video_processor.to_pixels(video) for video in videos]))
