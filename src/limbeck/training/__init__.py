"""Training: the Hugging Face Trainer, fed by a signal source."""

from limbeck.training.lessons import Teaching
from limbeck.training.planning import Plan, plan_stages
from limbeck.training.stages import Trained, train_stages
from limbeck.training.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "Plan", "Teaching", "Trained", "plan_stages", "train_stages"]
