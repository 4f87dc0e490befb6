"""Which teacher layer each student layer learns from."""

from __future__ import annotations

from limbeck.errors import InputError
from limbeck.objectives.term import Shapes
from limbeck.recipe.terms import LayerMap


def resolve(layers: LayerMap, student: int, teacher: int, lowest: int = 0) -> dict[int, int]:
    """A layer map in absolute numbers: 1 is the first layer, 0 what it reads.

    With M student and N teacher layers:

    - `uniform`: m to m N / M, rounded half up where that is not whole (TinyBERT's g(m)). 12 to 4: 3, 6, 9, 12.
    - `skip`: the same without the last pair (PKD-Skip). 12 to 6: 2, 4, 6, 8, 10.
    - `last`: m to N - M + m without the last pair (PKD-Last). 12 to 6: 7, 8, 9, 10, 11.
    - a mapping: both numbers count from 1, or from the end (-1 is the last); 0 may map to 0.

    Args:
        layers: as in the recipe.
        student: M.
        teacher: N.
        lowest: 0, or 1 for signals that what the first layer reads has none of, such as attention.

    Returns:
        Student layer to teacher layer, at least one pair.

    Raises:
        InputError: a named map with a student deeper than its teacher or without a pair, or a layer that is not there.
    """
    if isinstance(layers, dict):
        return _explicit(layers, student, teacher, lowest)
    if student > teacher:
        raise InputError(
            f"layers={layers} needs a teacher as deep as the student, but the student has {student} layers and the "
            f"teacher {teacher}; give the student at most {teacher}, or map layers yourself, such as {{-1: -1}}"
        )
    shift = teacher - student
    pairs = {m: m + shift if layers == "last" else (2 * m * teacher + student) // (2 * student) for m in _to(student)}
    if layers != "uniform":
        del pairs[student]
    if not pairs:
        raise InputError(
            f"layers={layers} leaves out the last layer, and the student has {student} layer to the teacher's "
            f"{teacher}; use layers=uniform"
        )
    return pairs


def one_layer(name: str, layers: LayerMap, shapes: Shapes, only: int) -> dict[int, int]:
    """A term's map reduced to the pair of one student layer.

    Raises:
        InputError: the map has no such pair, or cannot be.
    """
    pairs = resolve(layers, shapes.student.layers, shapes.teacher.layers)
    if only not in pairs:
        raise InputError(
            f"{name} has a teacher layer for the student's layers {', '.join(map(str, pairs))} but none for layer "
            f"{only} of {shapes.student.layers}; give {name}.layers a map of them all, such as uniform"
        )
    return {only: pairs[only]}


def _explicit(layers: dict[int, int], student: int, teacher: int, lowest: int) -> dict[int, int]:
    if not layers:
        raise InputError(
            f"layers={{}} maps none of the student's {student} layers to one of the teacher's {teacher}; "
            "give a pair, such as {-1: -1}"
        )
    pairs: dict[int, int] = {}
    for mine, its in layers.items():
        pair = f"layers has the pair {mine}: {its}"
        if (mine == 0) != (its == 0) or (mine == 0 and lowest > 0):
            why = "there is no layer 0 here" if lowest else "0 is what the first layer reads and goes with 0 alone"
            raise InputError(f"{pair}, but {why}; use 1 to {student} for the student, 1 to {teacher} for the teacher")
        for whose, number, depth in (("student", mine, student), ("teacher", its, teacher)):
            if abs(number) > depth:
                raise InputError(
                    f"{pair}, but the student has {student} layers and the teacher {teacher}; "
                    f"use 1 to {depth}, or -{depth} to -1, for the {whose}"
                )
        layer = _absolute(mine, student)
        if layer in pairs:
            raise InputError(f"{pair}, but layer {layer} of the student's {student} already has another; keep one")
        pairs[layer] = _absolute(its, teacher)
    return pairs


def _to(depth: int) -> range:
    return range(1, depth + 1)


def _absolute(number: int, depth: int) -> int:
    return number if number >= 0 else depth + 1 + number
