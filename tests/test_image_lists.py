"""A video given as a list of image files."""

import numpy as np
import pytest
from fresh_process import ROOT
from PIL import Image

from videollm_mod import VideoLLMMoDProcessor


@pytest.fixture(scope="module")
def processor():
    return VideoLLMMoDProcessor.from_pretrained(ROOT)


@pytest.fixture
def images(tmp_path) -> list[str]:
    paths = [str(tmp_path / name) for name in ("a.png", "b.JPG", "c.webp")]
    for index, path in enumerate(paths):
        Image.fromarray(np.full((40, 60, 3), 20 + 100 * index, np.uint8)).save(path)
    return paths


def messages(video) -> list[dict]:
    return [{"role": "stream", "content": [{"type": "video", "video": video}]}]


def test_a_list_of_image_files_is_one_video(processor, images):
    expected = processor.video_processor([Image.open(path) for path in images])["pixel_values_videos"]
    for found in (
        processor(text="[<v>]", videos=[images]),
        processor(text=["[<v>]"], videos=[[images]]),
        processor.apply_chat_template(messages(images), tokenize=True, return_dict=True),
        processor.video_processor([images]),
    ):
        assert np.array_equal(found["pixel_values_videos"], expected)
    two = processor(text=["[<v>]", "[<v>]"], videos=[images, images[:2]])
    assert len(two["pixel_values_videos"]) == 5


def test_each_path_of_a_list_of_videos_is_a_video(processor):
    clips = [str(ROOT / "media" / "world.mp4")] * 2
    assert len(processor(text="[<v>][<v>]", videos=[clips], fps=0.1)["pixel_values_videos"]) == 4


def test_a_file_that_is_not_an_image_is_named(processor, images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^there is no image .*gone\.png$"):
        processor.apply_chat_template(messages([images[0], str(tmp_path / "gone.png")]), tokenize=True)
    clip = str(ROOT / "media" / "world.mp4")
    with pytest.raises((ValueError, OSError), match="world.mp4' is no image, as each of a list of frames must be$"):
        processor.apply_chat_template(messages([images[0], clip]), tokenize=True)
