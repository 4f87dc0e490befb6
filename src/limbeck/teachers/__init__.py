"""Whoever can be asked: one Hugging Face model, several as one, or any of these held to rules."""

from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.huggingface import HuggingFaceModel
from limbeck.teachers.live import LiveTeacher
from limbeck.teachers.loading import open_teacher
from limbeck.teachers.ruled import Ruled, RuledWords

__all__ = ["Ensemble", "HuggingFaceModel", "LiveTeacher", "Ruled", "RuledWords", "open_teacher"]
