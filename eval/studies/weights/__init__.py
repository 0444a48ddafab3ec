from merit.eval.studies.study import Methods, Seeds, Study


class Weights(Study):
    """Every method's branches merged under every reading of `merge_weights`."""

    title = "What a merge weight counts"

    methods: Methods
    seeds: Seeds = [1, 2, 3]
