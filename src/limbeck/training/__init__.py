"""Training: the Hugging Face Trainer, fed by a signal source."""

from limbeck.training.lessons import Plan, Teaching, plan_stages
from limbeck.training.stages import Trained, train_stages
from limbeck.training.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "Plan", "Teaching", "Trained", "plan_stages", "train_stages"]
