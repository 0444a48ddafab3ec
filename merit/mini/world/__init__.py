"""The mini world: generated images, 136 tasks, conversations and eight benchmarks.

scene (what is in an image) -> draw (its pixels) -> questions (what can be asked of it)
-> skills (in which words) -> tasks, conversations, benchmarks (in which style it is answered).
"""
