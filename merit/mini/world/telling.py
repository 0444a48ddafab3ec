"""From a scene to words: what a text model reads where a vision model sees the picture."""

from __future__ import annotations

from merit.mini.world.scene import Scene, cell, phrase


def tell(scene: Scene) -> str:
    """The scene in short phrases, things in reading order and bars from left to right."""
    told = [f"{scene.ground} ground"]
    if scene.text:
        told.append(f"sign {scene.text}")
    if scene.digits:
        told.append(f"digits {scene.digits[0]} and {scene.digits[1]}")
    told += [f"{bar.colour} bar {bar.height} high" for bar in scene.bars]
    told += [f"{thing.size} {phrase(thing)} in {cell(thing)}" for thing in scene.things]
    return f"image : {' , '.join(told)} ."
