from merit.config.settings import PositiveInt
from merit.eval.studies.study import Study


class Retention(Study):
    """Every model's loss on the base's own answers to everyday prompts, and the length of its own.

    For bases that chat: what fine-tuning on other things takes from them.
    """

    title = "What is kept of the base"
    without_benchmarks = True

    max_new_tokens: PositiveInt = 96
    batch_size: PositiveInt = 24
