"""Training: the Hugging Face Trainer, fed by a signal source."""

from limbeck.training.stages import Trained, train_stages
from limbeck.training.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "Trained", "train_stages"]
