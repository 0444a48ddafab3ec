"""vLLM's own process: runs in the environment that has vLLM, so it imports nothing of merit.

stdin: pickles of plain values: LLM's options, then rounds of (prompt, images as (size, RGB bytes),
most new tokens), each ended by None. stdout: JSON lines: null once the model is loaded, then
[position in the round, answer] as answers are finished, and null at a round's end.
"""

import json
import os
import pickle
import sys

OPEN = 2048  # questions that vLLM has at a time; as one is answered the next is read


def main() -> None:
    # what vLLM prints goes to stderr: stdout carries only replies
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(value: object) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    from PIL import Image
    from vllm import LLM, SamplingParams

    engine = LLM(**pickle.load(sys.stdin.buffer)).llm_engine

    def add(name: str, text: str, images: list[tuple[tuple[int, int], bytes]], length: int) -> None:
        request: dict[str, object] = {"prompt": text}
        if images:
            pictures = [Image.frombytes("RGB", size, content) for size, content in images]
            request["multi_modal_data"] = {"image": pictures}
        greedy = SamplingParams(temperature=0.0, max_tokens=length, repetition_penalty=1.0)
        engine.add_request(name, request, greedy)

    say(None)
    while sys.stdin.buffer.peek(1):  # type: ignore[union-attr]
        number, more = 0, True
        while more or engine.has_unfinished_requests():
            while more and engine.get_num_unfinished_requests() < OPEN:
                question = pickle.load(sys.stdin.buffer)
                more = question is not None
                if more:
                    add(str(number), *question)
                    number += 1
            for output in engine.step() if engine.has_unfinished_requests() else ():
                if output.finished:
                    say([int(output.request_id), output.outputs[0].text.strip()])
        say(None)


if __name__ == "__main__":
    main()
