"""Typed settings: one YAML an experiment, and params.yaml for the pipeline as a whole.

Every key that there is stands in a class of one of these modules, with its default. Everything that
is run has a level: the default one, `full` (the default and more) or `tune`.
"""

from merit.config.base import (
    MAIN,
    Architecture,
    Base,
    Origin,
    Phase,
)
from merit.config.data import (
    MiniTextData,
    MiniWorldData,
)
from merit.config.evaluation import (
    Evaluation,
    JudgeSettings,
)
from merit.config.experiment import (
    EXPERIMENTS_DIR,
    REHEARSAL,
    Experiment,
    combinations,
    every_method,
    load_experiment,
    other_base,
    overridden,
    select,
    suffix,
    variants,
)
from merit.config.methods import (
    PARAMETERS,
    Method,
    Reading,
    Sweep,
)
from merit.config.params import (
    PARAMS_FILE,
    Launch,
    Params,
    Tracking,
    load_params,
)
from merit.config.training import (
    COMPONENTS,
    Encoding,
    Gradients,
    Lora,
    Optimizer,
    Runtime,
    Training,
)

__all__ = [
    "COMPONENTS",
    "EXPERIMENTS_DIR",
    "MAIN",
    "PARAMETERS",
    "PARAMS_FILE",
    "REHEARSAL",
    "Architecture",
    "Base",
    "Encoding",
    "Evaluation",
    "Experiment",
    "Gradients",
    "JudgeSettings",
    "Launch",
    "Lora",
    "Method",
    "MiniTextData",
    "MiniWorldData",
    "Optimizer",
    "Origin",
    "Params",
    "Phase",
    "Reading",
    "Runtime",
    "Sweep",
    "Tracking",
    "Training",
    "combinations",
    "every_method",
    "load_experiment",
    "load_params",
    "other_base",
    "overridden",
    "select",
    "suffix",
    "variants",
]
