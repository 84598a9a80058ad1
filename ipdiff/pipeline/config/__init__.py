"""params.yaml, typed: read, refuse what is wrong in one line that names the key, and look values up."""

from ipdiff.pipeline.config.naming import misnamed, nearest, project_path, suggest
from ipdiff.pipeline.config.params import (
    Params,
    gammas,
    points,
    runs,
    sampler_of,
    shown,
    start_of,
    step_problem,
    trained,
    unperturbed,
    value_at,
)
from ipdiff.pipeline.config.studies import DEFAULT, FOLDER, PARAMS, Studies, load, path_of

__all__ = [
    "DEFAULT",
    "FOLDER",
    "PARAMS",
    "Params",
    "Studies",
    "gammas",
    "load",
    "misnamed",
    "nearest",
    "path_of",
    "points",
    "project_path",
    "runs",
    "sampler_of",
    "shown",
    "start_of",
    "step_problem",
    "suggest",
    "trained",
    "unperturbed",
    "value_at",
]
