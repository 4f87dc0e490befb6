"""Whoever can be asked: one Hugging Face model, or several as one."""

from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.huggingface import HuggingFaceModel
from limbeck.teachers.live import LiveTeacher
from limbeck.teachers.loading import open_teacher

__all__ = ["Ensemble", "HuggingFaceModel", "LiveTeacher", "open_teacher"]
