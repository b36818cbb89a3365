"""Ask a question about a video: python examples/describe.py VIDEO QUESTION"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", help="path or URL")
    parser.add_argument("question")
    parser.add_argument("--model", default=Path(__file__).resolve().parent.parent, help="folder or Hub id")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    args = parser.parse_args()

    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(args.model, trust_remote_code=True, dtype="auto").eval()
    if torch.cuda.is_available():
        model = model.to("cuda")

    messages = [
        {"role": "stream", "content": [{"type": "video", "video": args.video, "fps": args.fps}]},
        {"role": "user", "content": args.question},
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    output = model.generate(**inputs, max_new_tokens=args.max_new_tokens)
    print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())


if __name__ == "__main__":
    main()
