from merit.eval.studies.study import Study


class Overlap(Study):
    """Which benchmark questions and images stand in the training data as well.

    The experiment's own benchmarks, or `files`: a benchmark's TSV or JSONL file each, with
    environment variables (`$LMUData/x.tsv`). Without `images` no image is opened.
    """

    title = "Training data and benchmarks"

    files: dict[str, str] = {}
    images: bool = True
