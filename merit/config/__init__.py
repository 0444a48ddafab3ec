"""Typed settings: one YAML an experiment, and params.yaml for the pipeline as a whole.

Every key that there is stands in a class of one of these modules, with its default. Everything that
is run has a level: the default one, `full` (the default and more) or `tune`.
"""

from merit.config.assignment import (
    PARAMETERS,
    Method,
    Reading,
    Sweep,
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
from merit.config.fine_tuning import (
    COMPONENTS,
    Encoding,
    Gradients,
    Lora,
    Optimizer,
    Runtime,
    Training,
)
from merit.config.mixtures import (
    MiniTextData,
    MiniWorldData,
)
from merit.config.params import (
    PARAMS_FILE,
    Launch,
    Params,
    Tracking,
    load_params,
)
from merit.config.scoring import (
    Evaluation,
    JudgeSettings,
)
from merit.config.theta0 import (
    MAIN,
    Architecture,
    Base,
    Origin,
    Phase,
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
