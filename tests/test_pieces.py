"""What stands around frames and text in this package's own sequence: the interface that a session asks."""

import pytest
from test_processing import MERGES, N, byte_tokenizer, processor_of


@pytest.mark.parametrize(("merges", "options"), [((), {}), (MERGES, {"stream_start": "(", "frame_separator": ";"})])
def test_native_ids(merges, options):
    tokenizer = byte_tokenizer(merges)
    processor = processor_of(tokenizer, **options)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start, separator = options.get("stream_start", "["), options.get("frame_separator", ",")
    user, assistant = ids("\nUser:") + ids(" So?"), ids("\nAssistant:")
    assert processor.start_ids() == [tokenizer.bos_token_id]
    assert processor.start_ids("Be brief.") == [tokenizer.bos_token_id, *ids("Be brief."), *ids("\n")]
    assert processor.start_stream_ids == ids("\n" + start)
    assert processor.frame_ids_at(3.5) == processor.frame_ids_at() == [processor.video_token_id] * N
    assert processor.between_frames_ids == ids(separator) == [processor.frame_separator_token_id]
    assert processor.question_ids("So?", in_stream=True) == ids("]") + user
    assert processor.question_ids("So?", in_stream=False) == user
    assert processor.instruction_ids("So?", in_stream=True) == ids("]") + user
    for query in (None, "So?"):
        assert processor.reply_start_ids(True, query) == ids("]") + assistant
        assert processor.reply_start_ids(False, query) == assistant
    assert processor.reply_end_ids == [tokenizer.eos_token_id]
