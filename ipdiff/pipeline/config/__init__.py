"""params.yaml, typed: read, refuse what is wrong in one line that names the key, and look values up."""

from ipdiff.pipeline.config.naming import NAME, nearest, project_path, suggest
from ipdiff.pipeline.config.params import Params, points, runs, sampler_of, shown, start_of, step_problem, value_at
from ipdiff.pipeline.config.studies import DEFAULT, FOLDER, PARAMS, Studies, load, path_of

__all__ = [
    "DEFAULT",
    "FOLDER",
    "NAME",
    "PARAMS",
    "Params",
    "Studies",
    "load",
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
    "value_at",
]
