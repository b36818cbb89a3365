"""Streams of the world as data sets: they have a length and an end, and are grouped by token count."""

import pytest
import torch
from fresh_process import ROOT
from small_data import small_model
from transformers import TrainingArguments

from videollm_mod import VideoLLMMoDProcessor
from videollm_mod.data.collator import StreamCollator
from videollm_mod.data.world_data import WorldCells, WorldData, WorldStreams
from videollm_mod.training.trainer import StreamTrainer

COUNT = 12


@pytest.fixture(scope="module")
def model_and_processor():
    return small_model()


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[name] == other[name] if name == "turns" else torch.equal(*map(torch.as_tensor, (one[name], other[name])))
        for name in one
    )


@pytest.mark.parametrize("cells", [False, True])
def test_world_data_set_ends_like_a_list(model_and_processor, cells):
    data = WorldData(num_streams=COUNT)
    dataset = WorldCells(data, 32, (2, 2)) if cells else WorldStreams(data, model_and_processor[1])
    examples = []
    for example in dataset:
        examples.append(example)
        assert len(examples) <= COUNT, "a loop over it goes on past its end"
    assert len(examples) == len(dataset) == COUNT
    assert same(dataset[-1], examples[-1]) and same(dataset[-COUNT], examples[0])
    for index in (COUNT, -COUNT - 1, 10**6):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
@pytest.mark.parametrize("given", [False, True])
def test_trainer_groups_streams_by_token_count(model_and_processor, tmp_path, strategy, given):
    """With the processor, as in `videollm-mod train`, and without."""
    model, processor = model_and_processor
    dataset = WorldStreams(WorldData(num_streams=COUNT), processor)
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=COUNT // 3,
        train_sampling_strategy=strategy,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
    )
    collate = StreamCollator(processor.tokenizer.pad_token_id)
    named = {"processing_class": processor} if given else {}
    trainer = StreamTrainer(model, arguments, collate, dataset, video_processor=processor.video_processor, **named)
    batches = [batch["attention_mask"].sum(1).tolist() for batch in trainer.get_train_dataloader()]
    lengths = [len(example["input_ids"]) for example in dataset]
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    if strategy == "group_by_length":  # the longest first, and of each batch the longer first
        assert batches[0][0] == max(lengths)
        assert all(batch[1:] == sorted(batch[1:], reverse=True) for batch in batches)


def test_input_ids_are_the_first_model_input(model_and_processor):
    names = model_and_processor[1].model_input_names
    assert names[0] == "input_ids" and sorted(names) == ["attention_mask", "input_ids", "pixel_values_videos"]
    assert VideoLLMMoDProcessor.from_pretrained(ROOT).model_input_names == names
