"""Whoever can be asked: a Hugging Face model, a server, several as one, or any of these held to rules."""

from limbeck.teachers.api import ApiTeacher, ask_servers, behind_api, labels_alone
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.huggingface import HuggingFaceModel
from limbeck.teachers.live import LiveTeacher, LiveTeachers
from limbeck.teachers.loading import open_teacher
from limbeck.teachers.ruled import Ruled, RuledWords

__all__ = [
    "ApiTeacher",
    "Ensemble",
    "HuggingFaceModel",
    "LiveTeacher",
    "LiveTeachers",
    "Ruled",
    "RuledWords",
    "ask_servers",
    "behind_api",
    "labels_alone",
    "open_teacher",
]
