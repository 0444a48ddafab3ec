"""Typed settings: one YAML per experiment, and params.yaml for the pipeline as a whole.

Every key is a field of a class in one of these modules, with its default.
"""

from merit.config.base import Architecture, Base, Origin, Phase
from merit.config.data import MiniWorldData
from merit.config.evaluation import Evaluation, JudgeSettings
from merit.config.experiment import EXPERIMENTS_DIR, Experiment, every_method, load_experiment
from merit.config.methods import PARAMETERS, Method, Sweep, combinations, suffix
from merit.config.params import PARAMS_FILE, Launch, Params, Tracking, load_params
from merit.config.training import (
    COMPONENTS,
    Encoding,
    Gradients,
    Lora,
    Optimizer,
    Runtime,
    Training,
)
