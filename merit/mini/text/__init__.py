"""The mini text world: facts, stories and two toy languages; 66 tasks and eight benchmarks.

lexicon (words and facts) -> knowledge, stories, reading, inference, writing (what can be asked)
-> tasks (in which words, answered in which style), corpus (what the base has read), benchmarks.
"""
